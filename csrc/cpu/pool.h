// A few worker threads that sleep until there is work: never spinning, since a spinning worker starves whatever else
// runs on a busy machine. Started on first use, again after a fork.
#pragma once

#include <cstdint>
#include <functional>

namespace hash3d::cpu {

// Calls body(i) for i in [0, tasks) on up to `threads` threads, the caller's among them, and returns when all are done.
// The order is free: body(i) must not depend on it. `body` must not throw.
void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& body);

}  // namespace hash3d::cpu

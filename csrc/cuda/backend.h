// The CUDA backend's entry points. A build without nvcc links no_cuda.cpp, whose functions refuse.
#pragma once

#include <string>

#include "hash3d/hash3d.h"

namespace hash3d::cuda {

void lookup(const Table& table, const float* keys, int64_t count, int64_t* serials, const Context& context);

// Operations that this build has no kernel for.
[[noreturn]] void refuse(const char* operation);

int device_count();
std::string compiler();
std::string architectures();

}  // namespace hash3d::cuda

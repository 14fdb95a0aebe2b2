// The engine without Python, for the sanitizers: several threads, each with a table of its own, all wanting the pool of
// workers at once; and one table asked for the same things with one thread and with four.
//
//   engine_threads          everything below; exit code 0, or 1 with a line that says what differs
//   engine_threads race     two threads append to one table at once: a data race that ThreadSanitizer must report
//   engine_threads overrun  a query writes past its output: AddressSanitizer must report it
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "owner.h"

namespace {

using namespace hash3d;

constexpr int64_t kFeature = 200'000 + 19;  // several spans of work for the pool, and a tail
constexpr int64_t kLatent = 99;
constexpr int64_t kLookups = 20'000;

Config config_of(int64_t capacity) { return plain_config(capacity, kFeature, kLatent); }

// Everything a table answered, one after the other.
std::vector<double> answers(int threads, uint32_t seed, int rounds) {
  Owner owner(config_of(7), Context{});
  Context context;
  context.threads = threads;
  std::vector<double> all;
  for (int round = 0; round < rounds; ++round, seed += 17) {
    constexpr int64_t kBatch = 2;
    const auto keys = poses(kBatch, seed);
    const auto latents = numbers(kBatch * kLatent, seed + 1), features = numbers(kBatch * kFeature, seed + 2);
    int64_t serials[kBatch];
    append(owner.table, Items{kBatch, keys.data(), latents.data(), features.data()}, serials, context);
    all.insert(all.end(), serials, serials + kBatch);

    std::vector<float> blended(kBatch * kFeature, 0.0f), weights(kBatch * 3);
    std::vector<int64_t> used(kBatch * 3);
    uint8_t hit[kBatch];
    int32_t grid[kBatch];
    query(owner.table, Items{kBatch, keys.data(), latents.data(), nullptr},
          Answers{blended.data(), kFeature, hit, grid, used.data(), weights.data()}, context);
    all.insert(all.end(), grid, grid + kBatch);
    all.insert(all.end(), used.begin(), used.end());
    all.insert(all.end(), weights.begin(), weights.end());
    all.insert(all.end(), blended.begin(), blended.end());

    const auto many = poses(kLookups, seed + 3);
    std::vector<int64_t> found(kLookups * 3 * 3);
    lookup(owner.table, many.data(), kLookups, found.data(), context);
    all.insert(all.end(), found.begin(), found.end());
    std::vector<float> averages(kLookups * 3);
    similarity(owner.table, many.data(), kLookups, averages.data(), context);
    all.insert(all.end(), averages.begin(), averages.end());
  }
  return all;
}

int fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  return 1;
}

bool in_a_child(const std::vector<double>& expected) {
  const pid_t child = fork();
  if (child == 0) _exit(answers(4, 1, 3) == expected ? 0 : 1);
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// No thread can be started: none has room for a stack of this size.
bool without_threads(const std::vector<double>& expected) {
  pthread_attr_t before, huge;
  if (pthread_getattr_default_np(&before) != 0 || pthread_attr_init(&huge) != 0) return false;
  if (pthread_attr_setstacksize(&huge, size_t{1} << 46) != 0 || pthread_setattr_default_np(&huge) != 0) return false;
  const bool same = answers(4, 1, 3) == expected;
  return pthread_setattr_default_np(&before) == 0 && same;
}

int check() {
  const auto expected = answers(1, 1, 3);
  if (!without_threads(expected)) return fail("without threads to be had, a table answers otherwise");
  if (answers(4, 1, 3) != expected) return fail("four threads answer otherwise than one");
  constexpr int kCallers = 3;
  std::vector<std::vector<double>> found(kCallers);
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) callers.emplace_back([&found, i] { found[i] = answers(4, 1, 3); });
  for (std::thread& caller : callers) caller.join();
  for (const auto& one : found) {
    if (one != expected) return fail("a table answers otherwise while others are at work");
  }
  // A process that ThreadSanitizer watches may not start threads after a fork.
#ifndef __SANITIZE_THREAD__
  if (!in_a_child(expected)) return fail("a forked child answers otherwise, or not at all");
#endif
  return 0;
}

int race() {
  Owner owner(config_of(4), Context{});
  const auto keys = poses(1, 5);
  const auto latents = numbers(kLatent, 6), features = numbers(kFeature, 7);
  const auto work = [&] {
    int64_t serial;
    append(owner.table, Items{1, keys.data(), latents.data(), features.data()}, &serial, Context{});
  };
  std::thread other(work);
  work();
  other.join();
  return 0;
}

int overrun() {
  Owner owner(config_of(2), Context{});
  const auto keys = poses(1, 5);
  const auto latents = numbers(kLatent, 6), features = numbers(kFeature, 7);
  int64_t serial, used[3];
  append(owner.table, Items{1, keys.data(), latents.data(), features.data()}, &serial, Context{});
  std::vector<float> blended(kFeature - 1);  // one too few
  float weights[3];
  uint8_t hit;
  int32_t grid;
  query(owner.table, Items{1, keys.data(), latents.data(), nullptr},
        Answers{blended.data(), kFeature, &hit, &grid, used, weights}, Context{});
  return hit ? 0 : fail("the query missed: nothing was written");
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  if (mode == "race") return race();
  if (mode == "overrun") return overrun();
  return check();
}

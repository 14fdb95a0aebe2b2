// The choice of the instruction set, once, at run time.
#include <atomic>
#include <cstdlib>

#include "rows.h"

namespace hash3d {
namespace cpu {
namespace {

std::vector<const Rows*> runnable() {
  std::vector<const Rows*> paths;
#ifdef HASH3D_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) paths.push_back(&kRowsAvx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) paths.push_back(&kRowsAvx2);
#endif
  paths.push_back(&kRowsBaseline);
  return paths;
}

const Rows* named(const std::string& name) {
  for (const Rows* path : runnable()) {
    if (name == path->name) return path;
  }
  return nullptr;
}

const Rows* first_choice() {
  const char* wanted = std::getenv("HASH3D_SIMD");
  const Rows* path = wanted == nullptr ? nullptr : named(wanted);
  return path == nullptr ? runnable().front() : path;
}

std::atomic<const Rows*>& current() {
  static std::atomic<const Rows*> path{first_choice()};
  return path;
}

}  // namespace

const Rows& rows() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> simd_paths() {
  std::vector<std::string> names;
  for (const Rows* path : runnable()) names.emplace_back(path->name);
  return names;
}

}  // namespace cpu

bool use_simd(const std::string& name) {
  const cpu::Rows* path = cpu::named(name);
  if (path != nullptr) cpu::current().store(path);
  return path != nullptr;
}

void to_float(DType dtype, const void* source, float* target, int64_t count) {
  cpu::rows().to_float(dtype, source, target, count);
}

void from_float(DType dtype, const float* source, void* target, int64_t count) {
  cpu::rows().from_float(dtype, source, target, count);
}

}  // namespace hash3d

// The one place where a call is sent to its device, and where bad calls stop.
#include "cpu/backend.h"
#include "cpu/rows.h"
#include "cuda/backend.h"

namespace hash3d {
namespace {

bool on_cpu(const Context& context) { return context.type == DeviceType::kCpu; }

}  // namespace

void clear(const Table& table, const Context& context) {
  if (!on_cpu(context)) cuda::refuse("clear");
  cpu::clear(table);
}

void append(const Table& table, const Items& items, int64_t* serials, const Context& context) {
  if (!on_cpu(context)) cuda::refuse("append");
  cpu::append(table, items, serials, context.threads);
}

void query(const Table& table, const Items& items, const Answers& answers, const Context& context) {
  if (!on_cpu(context)) cuda::refuse("query");
  cpu::query(table, items, answers, context.threads);
}

void lookup(const Table& table, const float* keys, int64_t count, int64_t* serials, const Context& context) {
  if (on_cpu(context)) {
    cpu::lookup(table, keys, count, serials, context.threads);
  } else {
    cuda::lookup(table, keys, count, serials, context);
  }
}

void similarity(const Table& table, const float* keys, int64_t count, float* averages, const Context& context) {
  if (!on_cpu(context)) cuda::refuse("similarity");
  cpu::similarity(table, keys, count, averages);
}

bool restore(const Table& table, const int64_t* serials, const uint8_t* member, int64_t count) {
  return cpu::restore(table, serials, member, count);
}

bool supports(DeviceType type) { return type == DeviceType::kCpu; }

BuildInfo build_info() {
  BuildInfo info;
  info.compiler = HASH3D_COMPILER;
  info.simd = cpu::rows().name;
  info.simd_paths = cpu::simd_paths();
  info.cuda = cuda::compiler();
  info.cuda_architectures = cuda::architectures();
  info.cuda_devices = cuda::device_count();
  return info;
}

}  // namespace hash3d

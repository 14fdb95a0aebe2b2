// The one place where a call is sent to its device.
#include "cpu/backend.h"
#include "cpu/rows.h"
#include "cuda/backend.h"

namespace hash3d {
namespace {

bool on_cpu(const Context& context) { return context.type == DeviceType::kCpu; }

}  // namespace

void clear(const Table& table, const Context& context) {
  on_cpu(context) ? cpu::clear(table) : cuda::clear(table, context);
}

void append(const Table& table, const Items& items, int64_t* serials, const Context& context) {
  if (on_cpu(context)) {
    cpu::append(table, items, serials, context.threads);
  } else {
    cuda::append(table, items, serials, context);
  }
}

void query(const Table& table, const Items& items, const Answers& answers, const Context& context) {
  if (on_cpu(context)) {
    cpu::query(table, items, answers, context.threads);
  } else {
    cuda::query(table, items, answers, context);
  }
}

void lookup(const Table& table, const float* keys, int64_t count, int64_t* serials, const Context& context) {
  if (on_cpu(context)) {
    cpu::lookup(table, keys, count, serials, context.threads);
  } else {
    cuda::lookup(table, keys, count, serials, context);
  }
}

void similarity(const Table& table, const float* keys, int64_t count, float* averages, const Context& context) {
  if (on_cpu(context)) {
    cpu::similarity(table, keys, count, averages);
  } else {
    cuda::similarity(table, keys, count, averages, context);
  }
}

void restore(const Table& table, const int64_t* serials, const uint8_t* member, int64_t count, int32_t* overflow,
             const Context& context) {
  if (on_cpu(context)) {
    cpu::restore(table, serials, member, count, overflow);
  } else {
    cuda::restore(table, serials, member, count, overflow, context);
  }
}

void* join_pieces(const Pieces& pieces, const Context& context) { return cuda::join_pieces(pieces, context); }

void launch_joined(void* joined, const Context& context) { cuda::launch_joined(joined, context); }

void release_joined(void* joined) { cuda::release_joined(joined); }

std::string missing_for_joins() { return cuda::missing_for_joins(); }

int64_t append_scratch(const Config& config, DeviceType type) {
  return type == DeviceType::kCpu ? 0 : cuda::append_scratch(config);
}

int64_t query_scratch(const Config& config, int64_t count, DeviceType type) {
  return type == DeviceType::kCpu ? 0 : cuda::query_scratch(config, count);
}

bool supports(DeviceType type) { return type == DeviceType::kCpu || !cuda::compiler().empty(); }

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

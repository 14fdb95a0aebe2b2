// lookup and similarity: reads by key alone, one thread for each key and grid.
//
// Bytes that must move for each key and grid of a look-up: 16 of key, 8 + 8 Q of chain, 16 for each live candidate's
// cell, and 8 Q of answer.
#include "../chains.h"
#include "backend.h"
#include "device.cuh"

namespace hash3d::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    find(const Table table, const float* __restrict__ keys, int64_t count, int64_t* __restrict__ serials) {
  const Config& config = table.config;
  const int64_t next_serial = table.counters[kNextSerial];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count * config.grids; i += step) {
    const int grid = static_cast<int>(i % config.grids);
    const Key key = load_key(keys, i / config.grids);
    int64_t* found = serials + i * config.queue_length;
    if (is_finite(key)) {
      candidates(table, grid, place_of(config, reduced(key, config.azimuth_period), grid), next_serial, found);
    } else {
      for (int age = 0; age < config.queue_length; ++age) found[age] = -1;
    }
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    averages_of(const Table table, const float* __restrict__ keys, int64_t count, float* __restrict__ averages) {
  const Config& config = table.config;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count * config.grids; i += step) {
    const int grid = static_cast<int>(i % config.grids);
    const Key key = load_key(keys, i / config.grids);
    averages[i] = is_finite(key)
                      ? similarity_at(table, grid, place_of(config, reduced(key, config.azimuth_period), grid).bucket)
                      : NAN;
  }
}

}  // namespace

void lookup(const Table& table, const float* keys, int64_t count, int64_t* serials, const Context& context) {
  if (count == 0) return;
  const DeviceGuard guard(context.device);
  launch("lookup", context, dim3(blocks_for(count * table.config.grids)), kThreads, find, table, keys, count, serials);
}

void similarity(const Table& table, const float* keys, int64_t count, float* averages, const Context& context) {
  if (count == 0) return;
  const DeviceGuard guard(context.device);
  launch("similarity", context, dim3(blocks_for(count * table.config.grids)), kThreads, averages_of, table, keys, count,
         averages);
}

// Without a driver the call fails and leaves its argument alone.
int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string compiler() { return std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__); }

std::string architectures() { return HASH3D_CUDA_ARCHITECTURES; }

}  // namespace hash3d::cuda

// The bare look-up: one thread for each key and grid. Bytes that must move for each: 16 of key, 8 + 8 Q of chain,
// 16 for each live candidate's cell, and 8 Q of answer.
#include "../chains.h"
#include "backend.h"
#include "device.cuh"

namespace hash3d::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm =
    1;  // as many registers as it likes: left to itself, ptxas takes too few on sm_100 and spills

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    lookup_kernel(const Table table, const float* __restrict__ keys, int64_t count, int64_t* __restrict__ serials) {
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

}  // namespace

void lookup(const Table& table, const float* keys, int64_t count, int64_t* serials, const Context& context) {
  if (count == 0) return;
  const DeviceGuard guard(context.device);
  lookup_kernel<<<blocks_for(count * table.config.grids, kThreads), kThreads, 0,
                  static_cast<cudaStream_t>(context.stream)>>>(table, keys, count, serials);
  check(cudaGetLastError(), "lookup");
}

void refuse(const char* operation) {
  throw std::runtime_error(std::string(operation) +
                           ": the CUDA backend has no kernel for it yet, only for lookup; use a table with "
                           "device=\"cpu\"");
}

// Without a driver the call fails and leaves its argument alone.
int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string compiler() { return std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__); }

std::string architectures() { return HASH3D_CUDA_ARCHITECTURES; }

}  // namespace hash3d::cuda

// clear, and restore after a file was read.
#include "../chains.h"
#include "backend.h"
#include "device.cuh"
#include "join.cuh"
#include "numbers.cuh"
#include "reduce.cuh"

namespace hash3d::cuda {
namespace {

// Bytes that must move: all chains and averages are written, and a number per slot.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) blank(const Table table) {
  const Config& config = table.config;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t buckets = config.grids * config.num_buckets, stride = 1 + config.queue_length;
  for (int64_t i = first; i < buckets * stride; i += step) table.chains[i] = i % stride == 0 ? 0 : -1;
  for (int64_t i = first; i < buckets; i += step) table.similarity[i] = NAN;
  for (int64_t i = first; i < config.capacity; i += step) table.joined[i] = 0;
  if (first < kCounters) table.counters[first] = 0;
}

// Norms and cells of entries whose keys and features are in their slots; a block each. Number by number, whatever the
// type: a file is read from a disk.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    measure(const Table table, const int64_t* serials, int64_t count) {
  const Config& config = table.config;
  const DType type = config.feature_dtype;
  for (int64_t row = blockIdx.x; row < count; row += gridDim.x) {
    const int64_t slot = slot_of(config, serials[row]);
    float squares[1] = {0.0f};
    for (int64_t i = threadIdx.x; i < config.feature_size; i += kThreads) {
      const int64_t place = slot * config.feature_size + i;
      float number[1];
      Narrow::unpack(type, Narrow::load(type, table.features, place), number);
      if (is_quantised(type)) number[0] *= table.scales[place / config.channel_size];
      squares[0] += number[0] * number[0];
    }
    block_reduce(squares, Add{});
    if (threadIdx.x == 0) table.norms[slot] = sqrtf(squares[0]);
    const int grid = threadIdx.x;
    if (grid < config.grids) {
      const Key key = reduced(load_key(table.keys, slot), config.azimuth_period);
      store_cell(table, grid, place_of(config, key, grid).cell, slot);
    }
  }
}

// Puts the entries into their chains, oldest first; a thread per grid.
__global__ void __launch_bounds__(kWarp)
    rejoin(const Table table, const int64_t* serials, const uint8_t* member, int64_t count, int32_t* overflow) {
  const Config& config = table.config;
  const int grid = threadIdx.x;
  if (grid >= config.grids) return;
  for (int64_t row = 0; row < count; ++row) {
    if (!member[row * config.grids + grid]) continue;
    const Key key = reduced(load_key(table.keys, slot_of(config, serials[row])), config.azimuth_period);
    const Place place = place_of(config, key, grid);
    if (*chain_at(table, grid, place.bucket) >= config.queue_length) {
      atomicOr(overflow, 1);
      return;
    }
    join(table, grid, place, serials[row], table.counters[kNextSerial]);
  }
}

__global__ void start(int32_t* overflow) { *overflow = 0; }

}  // namespace

void clear(const Table& table, const Context& context) {
  const DeviceGuard guard(context.device);
  const Config& config = table.config;
  const int64_t longest = std::max(config.grids * config.num_buckets * (1 + config.queue_length), config.capacity);
  launch("clear", context, dim3(blocks_for(longest)), kThreads, blank, table);
}

void restore(const Table& table, const int64_t* serials, const uint8_t* member, int64_t count, int32_t* overflow,
             const Context& context) {
  const DeviceGuard guard(context.device);
  launch("restore", context, dim3(1), 1, start, overflow);
  if (count == 0) return;
  launch("restore: norms", context, dim3(static_cast<unsigned>(std::min<int64_t>(count, 65536))), kThreads, measure,
         table, serials, count);
  launch("restore: chains", context, dim3(1), kWarp, rejoin, table, serials, member, count, overflow);
}

}  // namespace hash3d::cuda

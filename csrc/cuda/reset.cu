// clear, and restore after a file was read.
#include "../chains.h"
#include "backend.h"
#include "device.cuh"
#include "join.cuh"
#include "numbers.cuh"
#include "reduce.cuh"
#include "store_scaled.cuh"

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

template <typename Piece>
__device__ __forceinline__ void add_squares(const Table& table, int64_t piece, float scale, float& sum) {
  const DType type = table.config.feature_dtype;
  float numbers[Piece::kNumbers];
  Piece::unpack(type, Piece::load(type, table.features, piece), numbers);
#pragma unroll
  for (int k = 0; k < Piece::kNumbers; ++k) {
    if (Piece::is_scaled(type)) numbers[k] *= scale;
    sum += numbers[k] * numbers[k];
  }
}

// What the thread adds to the squared norm in block `block` of `store`, or of `store_scaled`: the same numbers in the
// same order, so that an entry which was read from a file has the norm it had, to the last bit.
template <typename Piece>
__device__ __forceinline__ float part_of_squares(const Table& table, int64_t slot, int64_t block, int64_t blocks,
                                                 int warps) {
  const Config& config = table.config;
  const int64_t pieces = config.feature_size / Piece::kNumbers;
  float sum = 0.0f;
  if (!Piece::is_scaled(config.feature_dtype)) {
    const int64_t share = (pieces + blocks - 1) / blocks, begin = share * block;
    const int64_t end = begin + share < pieces ? begin + share : pieces;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      add_squares<Piece>(table, slot * pieces + i, 1.0f, sum);
    }
    return sum;
  }
  const int members = warps * kWarp, team = threadIdx.x / members, member = threadIdx.x % members;
  const int64_t teams = kThreads / members, channels = config.feature_size / config.channel_size;
  const int64_t each = config.channel_size / Piece::kNumbers;
  for (int64_t channel = block * teams + team; channel < channels; channel += blocks * teams) {
    const float scale = table.scales[slot * channels + channel];
    for (int64_t i = channel * each + member; i < (channel + 1) * each; i += members) {
      add_squares<Piece>(table, slot * pieces + i, scale, sum);
    }
  }
  return sum;
}

// Norms and cells of entries whose keys and features are in their slots; a block each, which does the work of all of
// `store`'s in turn.
template <typename Piece>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    measure(const Table table, const int64_t* serials, int64_t count, int64_t blocks, int warps) {
  const Config& config = table.config;
  for (int64_t row = blockIdx.x; row < count; row += gridDim.x) {
    const int64_t slot = slot_of(config, serials[row]);
    double mine = 0.0;
    for (int64_t block = 0; block < blocks; ++block) {
      float squares[1] = {part_of_squares<Piece>(table, slot, block, blocks, warps)};
      block_reduce(squares, Add{});
      if (threadIdx.x == block % kWarp) mine += squares[0];
    }
    if (threadIdx.x < kWarp) {
      const double squares = warp_reduce(mine, Add{});
      if (threadIdx.x == 0) table.norms[slot] = sqrtf(static_cast<float>(squares));
    }
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
  const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(count, 65536)));
  with_piece(table.config.feature_dtype, is_wide(table, table.config.feature_size, nullptr), [&](auto piece) {
    using Kind = decltype(piece);
    launch("restore: norms", context, blocks, kThreads, measure<Kind>, table, serials, count,
           blocks_of_store(table.config), team_size(table.config, Kind::kNumbers));
  });
  launch("restore: chains", context, dim3(1), kWarp, rejoin, table, serials, member, count, overflow);
}

}  // namespace hash3d::cuda

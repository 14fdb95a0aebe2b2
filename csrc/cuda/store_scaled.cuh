// A new feature into 8 bits. A channel's numbers are looked at twice, for the peak and to be rounded, the second time
// out of a cache: what must move is the float16 feature once, and half of that to the slot.
#pragma once

#include "store.cuh"

namespace hash3d::cuda {

// The given float16 numbers that become one of `Piece`, which is Wide<kInt8>, standing for both types, or Narrow.
template <typename Piece>
using Given = std::conditional_t<Piece::kNumbers == 1, Narrow, Wide<DType::kFloat16>>;

template <typename Piece>
__device__ __forceinline__ void unpack_scaled(DType type, const typename Piece::Raw& raw, float scale,
                                              float (&numbers)[Piece::kNumbers]) {
  if constexpr (Piece::kNumbers == 1) {
    Piece::unpack(type, raw, numbers);
  } else if (type == DType::kInt8) {
    Wide<DType::kInt8>::unpack(type, raw, numbers);
  } else {
    Wide<DType::kFloat8>::unpack(type, raw, numbers);
  }
#pragma unroll
  for (int k = 0; k < Piece::kNumbers; ++k) numbers[k] *= scale;
}

template <typename Piece>
__device__ __forceinline__ typename Piece::Raw pack_scaled(DType type, float inverse,
                                                           float (&numbers)[Piece::kNumbers]) {
  uint32_t bits[Piece::kNumbers];
#pragma unroll
  for (int k = 0; k < Piece::kNumbers; ++k) {
    const float scaled = numbers[k] * inverse;
    bits[k] = type == DType::kInt8 ? int8_bits(scaled) : float8_bits(scaled);
  }
  if constexpr (Piece::kNumbers == 1) {
    return bits[0];
  } else {
    return uint2{bits[0] | bits[1] << 8 | bits[2] << 16 | bits[3] << 24,
                 bits[4] | bits[5] << 8 | bits[6] << 16 | bits[7] << 24};
  }
}

struct Greatest {
  __device__ uint32_t operator()(uint32_t a, uint32_t b) const { return a > b ? a : b; }
};

// The greatest number of a team of `warps` neighbouring warps. All threads of the block must come here.
__device__ __forceinline__ uint32_t greatest_of_team(uint32_t value, int warps) {
  __shared__ uint32_t parts[kWarps];
  const int warp = threadIdx.x / kWarp;
  value = warp_reduce(value, Greatest{});
  if (threadIdx.x % kWarp == 0) parts[warp] = value;
  __syncthreads();
  const int first = warp / warps * warps;
  uint32_t greatest = parts[first];
  for (int other = 1; other < warps; ++other) greatest = Greatest{}(greatest, parts[first + other]);
  __syncthreads();  // the next call writes to `parts` again
  return greatest;
}

// The largest magnitude in the thread's part of a channel, as the bits of a float16: these are ordered alike.
template <typename Piece>
__device__ __forceinline__ uint32_t own_peak(const void* features, int64_t begin, int64_t end, int step) {
  uint32_t peak = 0;
  for (int64_t i = begin; i < end; i += step) {
    const auto raw = Given<Piece>::load(DType::kFloat16, features, i);
    if constexpr (Piece::kNumbers == 1) {
      peak = Greatest{}(peak, raw & 0x7fffu);
    } else {
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        peak = Greatest{}(peak, Greatest{}(words[k] & 0x7fffu, words[k] >> 16 & 0x7fffu));
      }
    }
  }
  return peak;
}

// A block is made of teams of `warps` warps, and a team takes a channel at a time.
template <typename Piece>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    store_scaled(const Table table, const void* features, const float* latent, const uint8_t* skip, int64_t item,
                 int warps, const Plan plan) {
  if (is_skipped(skip, item)) return;
  using Raw = typename Piece::Raw;
  const Config& config = table.config;
  const DType type = config.feature_dtype;
  const int members = warps * kWarp, team = threadIdx.x / members, member = threadIdx.x % members;
  const int64_t teams = kThreads / members, channels = config.feature_size / config.channel_size;
  const int64_t each = config.channel_size / Piece::kNumbers, pieces = channels * each;
  const int64_t slot = slot_of(config, table.counters[kNextSerial]);
  const int distinct = *plan.distinct;
  bool finite = true;
  for (int first = 0; first == 0 || first < distinct; first += kTogether) {
    int64_t slots[kTogether];
    slots_of(config, plan, first, distinct, slots);
    float sums[1 + kTogether] = {};
    for (int64_t turn = blockIdx.x * teams; turn < channels; turn += plan.blocks * teams) {
      const int64_t channel = turn + team;
      const bool there = channel < channels;
      const int64_t begin = channel * each + member, end = there ? (channel + 1) * each : 0;
      float scale = 0.0f, inverse = 0.0f, scales[kTogether] = {};
      if (first == 0) {
        const int64_t given = item * pieces;
        const uint32_t bits = greatest_of_team(own_peak<Piece>(features, given + begin, given + end, members), warps);
        finite = finite && bits < 0x7c00u;
        const float peak = number_of<DType::kFloat16>(bits);
        scale = scale_of(type, peak);
        inverse = inverse_of(type, peak);
        if (there && member == 0) table.scales[slot * channels + channel] = scale;
      } else if (there) {
        scale = table.scales[slot * channels + channel];
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (there && slots[j] >= 0) scales[j] = table.scales[slots[j] * channels + channel];
      }
      for (int64_t i = begin; i < end; i += members) {
        float own[Piece::kNumbers];
        Raw raw;
        if (first == 0) {
          Given<Piece>::unpack(DType::kFloat16, Given<Piece>::load(DType::kFloat16, features, item * pieces + i), own);
          raw = pack_scaled<Piece>(type, inverse, own);
          Piece::store(type, table.features, slot * pieces + i, raw);
        } else {
          raw = Piece::load(type, table.features, slot * pieces + i);
        }
        unpack_scaled<Piece>(type, raw, scale, own);
#pragma unroll
        for (int k = 0; k < Piece::kNumbers; ++k) sums[0] += own[k] * own[k];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          if (slots[j] < 0) continue;
          float other[Piece::kNumbers];
          unpack_scaled<Piece>(type, Piece::load(type, table.features, slots[j] * pieces + i), scales[j], other);
#pragma unroll
          for (int k = 0; k < Piece::kNumbers; ++k) sums[1 + j] += own[k] * other[k];
        }
      }
    }
    block_reduce(sums, Add{});
    leave_sums(plan, first, distinct, sums);
  }
  store_latent(table, latent, slot, finite, plan);
}

// Warps that share a channel: enough for a piece each, at most a block.
inline int team_size(const Config& config, int numbers) {
  int warps = 1;
  while (warps < kWarps && static_cast<int64_t>(warps) * kWarp * numbers < config.channel_size) warps *= 2;
  return warps;
}

}  // namespace hash3d::cuda

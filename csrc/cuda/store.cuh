// How append takes one new feature to its slot: on the pass that measures it, and in 8 bits where the table has it so.
#pragma once

#include "../chains.h"
#include "device.cuh"
#include "numbers.cuh"
#include "reduce.cuh"

namespace hash3d::cuda {

constexpr int kTogether = 4;  // candidates whose dot products are summed in one pass over the new feature

constexpr int64_t kSpan = 4096;             // numbers of a feature that one block of `store` takes
constexpr int64_t kMostBlocks = 1024;       // then the blocks take more
constexpr int64_t kMostPartials = 1 << 20;  // numbers of scratch memory for the blocks' sums

inline int64_t blocks_of_store(const Config& config) {
  const int64_t most = static_cast<int64_t>(config.grids) * config.queue_length;
  return std::clamp<int64_t>(ceil_div(config.feature_size, kSpan), 1,
                             std::clamp<int64_t>(kMostPartials / (1 + most), 1, kMostBlocks));
}

// One item's way through the kernels, all in scratch memory. C <= M Q candidates, each once.
struct Plan {
  int64_t blocks;     // of `store`
  int64_t* found;     // [M, Q] candidates of every grid, newest first
  int32_t* places;    // [M, Q] where in `others` they stand
  int32_t* counts;    // [M] how many
  int64_t* others;    // [C] the candidates of all grids, each once
  int32_t* distinct;  // C
  float* partials;    // [1 + C, blocks] squared norm and dot products of the blocks' parts
  int32_t* finite;    // [blocks] whether the block's part is
  float* cosines;     // [C]
};

__device__ __forceinline__ bool is_skipped(const uint8_t* skip, int64_t item) {
  return skip != nullptr && skip[item] != 0;
}

// The slots of candidates first .. first + kTogether; -1 where there are no more.
__device__ __forceinline__ void slots_of(const Config& config, const Plan& plan, int first, int distinct,
                                         int64_t (&slots)[kTogether]) {
#pragma unroll
  for (int j = 0; j < kTogether; ++j) {
    slots[j] = first + j < distinct ? slot_of(config, plan.others[first + j]) : -1;
  }
}

// What a block has summed over its part: squares where `first` is 0, and products with those candidates.
__device__ __forceinline__ void leave_sums(const Plan& plan, int first, int distinct,
                                           const float (&sums)[1 + kTogether]) {
  if (threadIdx.x != 0) return;
  const int64_t block = blockIdx.x, blocks = plan.blocks;
  if (first == 0) plan.partials[block] = sums[0];
#pragma unroll
  for (int j = 0; j < kTogether; ++j) {
    if (first + j < distinct) plan.partials[(1 + first + j) * blocks + block] = sums[1 + j];
  }
}

// The block's part of the latent, and whether that and its part of the feature are finite.
__device__ __forceinline__ void store_latent(const Table& table, const float* latent, int64_t slot, bool finite,
                                             const Plan& plan) {
  const int64_t size = table.config.latent_size, step = plan.blocks * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += step) {
    finite = finite && is_finite(latent[i]);
    table.latents[slot * size + i] = latent[i];
  }
  finite = __syncthreads_and(finite);
  if (threadIdx.x == 0) plan.finite[blockIdx.x] = finite;
}

// Features that are stored as they come.
template <typename Piece>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    store(const Table table, const void* features, const float* latent, const uint8_t* skip, int64_t item,
          const Plan plan) {
  if (is_skipped(skip, item)) return;
  const Config& config = table.config;
  const DType type = config.feature_dtype;
  const int64_t slot = slot_of(config, table.counters[kNextSerial]), pieces = config.feature_size / Piece::kNumbers;
  const int64_t share = (pieces + plan.blocks - 1) / plan.blocks, begin = share * blockIdx.x;
  const int64_t end = begin + share < pieces ? begin + share : pieces;
  const int distinct = *plan.distinct;
  bool finite = true;
  for (int first = 0; first == 0 || first < distinct; first += kTogether) {
    int64_t slots[kTogether];
    slots_of(config, plan, first, distinct, slots);
    float sums[1 + kTogether] = {};
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const typename Piece::Raw raw = Piece::load(type, features, item * pieces + i);
      float own[Piece::kNumbers];
      Piece::unpack(type, raw, own);
      if (first == 0) {
        Piece::store(type, table.features, slot * pieces + i, raw);
#pragma unroll
        for (int k = 0; k < Piece::kNumbers; ++k) {
          sums[0] += own[k] * own[k];
          finite = finite && is_finite(own[k]);
        }
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (slots[j] < 0) continue;
        float other[Piece::kNumbers];
        Piece::unpack(type, Piece::load(type, table.features, slots[j] * pieces + i), other);
#pragma unroll
        for (int k = 0; k < Piece::kNumbers; ++k) sums[1 + j] += own[k] * other[k];
      }
    }
    block_reduce(sums, Add{});
    leave_sums(plan, first, distinct, sums);
  }
  store_latent(table, latent, slot, finite, plan);
}

}  // namespace hash3d::cuda

// How query finds each item's grid and candidates, and how far their latents are (rules 4-6, 8 and 10). Its names are
// query.cu's own.
#pragma once

#include "../chains.h"
#include "device.cuh"
#include "reduce.cuh"

namespace hash3d::cuda {
namespace {

constexpr int kSpan = 4096;         // numbers of a latent that one block of `weigh` takes
constexpr int64_t kMostSpans = 16;  // then the blocks take more
constexpr int kNear = 64;           // candidates whose serials, weights and features' places fit into shared memory
constexpr int kTogether = 4;        // candidates whose distances are summed in one pass over the item's latent

// What `weigh` leaves for `blend`. S blocks share an item in `weigh`.
struct Found {
  int splits;        // S
  int32_t* grid;     // [B], -1: none
  int32_t* count;    // [B] candidates
  int32_t* finite;   // [B, S]: whether that part of the latent is
  float* distances;  // [B, S, Q]: parts of squared distances; their softmax gives the weights, whatever the weighting
  int64_t* candidates;  // [B, S, Q], only where Q > kNear: each block's own list
};

Found take(Scratch& scratch, const Config& config, int64_t count) {
  Found found{};
  found.splits = static_cast<int>(std::clamp<int64_t>(ceil_div(config.latent_size, kSpan), 1, kMostSpans));
  const int64_t rows = count * found.splits;
  found.grid = scratch.take<int32_t>(count);
  found.count = scratch.take<int32_t>(count);
  found.finite = scratch.take<int32_t>(rows);
  found.distances = scratch.take<float>(rows * config.queue_length);
  found.candidates = scratch.take<int64_t>(config.queue_length > kNear ? rows * config.queue_length : 0);
  return found;
}

// Rule 8 (Eq. 8). All threads of the block look for candidates, a grid and an age each; all get the answer.
__device__ int choose_grid(const Table& table, const Key& key, int64_t next_serial) {
  __shared__ int held[kMaxGrids];
  __shared__ float averages[kMaxGrids];
  __shared__ int chosen;
  const Config& config = table.config;
  const int thread = threadIdx.x;
  if (thread < config.grids) {
    held[thread] = 0;
    averages[thread] = similarity_at(table, thread, place_of(config, key, thread).bucket);
  }
  __syncthreads();
  for (int64_t i = thread; i < static_cast<int64_t>(config.grids) * config.queue_length; i += kThreads) {
    const int grid = static_cast<int>(i / config.queue_length), age = static_cast<int>(i % config.queue_length);
    if (candidate_at(table, grid, place_of(config, key, grid), age, next_serial) >= 0) atomicOr(&held[grid], 1);
  }
  __syncthreads();
  if (thread == 0) {
    chosen = -1;
    for (int grid = 0; grid < config.grids; ++grid) {
      if (held[grid] != 0 && (chosen < 0 || averages[grid] > averages[chosen])) chosen = grid;
    }
    if (chosen >= 0 && averages[chosen] < config.min_similarity) chosen = -1;
  }
  __syncthreads();
  return chosen;
}

// Lists the candidates of a place, newest first; all threads get their number.
__device__ int list_candidates(const Table& table, int grid, const Key& key, int64_t next_serial, int64_t* list) {
  __shared__ int total;
  if (threadIdx.x < kWarp) {
    const Place place = place_of(table.config, key, grid);
    const int lane = threadIdx.x, queue = table.config.queue_length;
    int found = 0;
    for (int first = 0; first < queue; first += kWarp) {
      const int age = first + lane;
      const int64_t serial = age < queue ? candidate_at(table, grid, place, age, next_serial) : -1;
      const unsigned holders = __ballot_sync(kAllLanes, serial >= 0);
      if (serial >= 0) list[found + __popc(holders & ((1u << lane) - 1u))] = serial;
      found += __popc(holders);
    }
    if (lane == 0) total = found;
  }
  __syncthreads();
  return total;
}

// Parts of the squared distances between numbers begin .. end of the item's latent and of its candidates'.
__device__ void measure_latents(const Table& table, const float* latent, int64_t begin, int64_t end,
                                const int64_t* list, int count, float* distances) {
  const Config& config = table.config;
  for (int first = 0; first < count; first += kTogether) {
    const float* others[kTogether];
    float sums[kTogether] = {};
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int64_t serial = list[first + j < count ? first + j : first];
      others[j] = table.latents + slot_of(config, serial) * config.latent_size;
    }
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const float own = latent[i];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const float difference = own - others[j][i];
        sums[j] += difference * difference;
      }
    }
    block_reduce(sums, Add{});
    const int j = threadIdx.x;
    if (j < kTogether && first + j < count) {
      float sum = sums[0];
#pragma unroll
      for (int k = 1; k < kTogether; ++k) sum = j == k ? sums[k] : sum;  // an index would put the array into memory
      distances[first + j] = sum;
    }
  }
}

// Which candidate has the nearest key; ties go to the newest, which comes first. All threads get the answer.
__device__ int nearest_key(const Table& table, int grid, const Key& key, const int64_t* list, int count) {
  __shared__ float distances[kThreads];
  __shared__ int places[kThreads];
  __shared__ int best;
  const Config& config = table.config;
  float nearest = INFINITY;
  int place = count;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const Key other = reduced(load_key(table.keys, slot_of(config, list[i])), config.azimuth_period);
    const float distance = key_distance(key, other, config.sizes[grid], config.azimuth_period);
    if (distance < nearest) {
      nearest = distance;
      place = i;
    }
  }
  distances[threadIdx.x] = nearest;
  places[threadIdx.x] = place;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads; ++i) {
      if (distances[i] < nearest || (distances[i] == nearest && places[i] < place)) {
        nearest = distances[i];
        place = places[i];
      }
    }
    best = place < count ? place : 0;
  }
  __syncthreads();
  return best;
}

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    weigh(const Table table, const float* keys, const float* latents, const Found found, int64_t* serials) {
  __shared__ int64_t near[kNear];
  const Config& config = table.config;
  const int split = blockIdx.x, queue = config.queue_length;
  const int64_t row = blockIdx.y, part = row * found.splits + split;
  const int64_t next_serial = table.counters[kNextSerial];
  const Key given = load_key(keys, row);
  const bool usable = is_finite(given);
  const Key key = reduced(given, config.azimuth_period);
  const int grid = usable ? choose_grid(table, key, next_serial) : -1;
  if (split == 0 && threadIdx.x == 0) found.grid[row] = grid;
  if (grid < 0) return;

  int64_t* list = queue <= kNear ? near : found.candidates + part * queue;
  const int count = list_candidates(table, grid, key, next_serial, list);
  if (split == 0) {
    if (threadIdx.x == 0) found.count[row] = count;
    for (int i = threadIdx.x; i < queue; i += kThreads) serials[row * queue + i] = i < count ? list[i] : -1;
  }

  const int64_t share = (config.latent_size + found.splits - 1) / found.splits;
  const int64_t begin = share * split, end = begin + share < config.latent_size ? begin + share : config.latent_size;
  const float* latent = latents + row * config.latent_size;
  bool finite = true;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) finite = finite && is_finite(latent[i]);
  finite = __syncthreads_and(finite);
  if (threadIdx.x == 0) found.finite[part] = finite;

  float* distances = found.distances + part * queue;
  if (config.weighting == Weighting::kSoftmax) {
    measure_latents(table, latent, begin, end, list, count, distances);
  } else {
    const bool alone = config.weighting == Weighting::kNearestKey && split == 0;
    const int best = alone ? nearest_key(table, grid, key, list, count) : 0;
    for (int i = threadIdx.x; i < count; i += kThreads) distances[i] = alone && i != best ? INFINITY : 0.0f;
  }
}

}  // namespace
}  // namespace hash3d::cuda

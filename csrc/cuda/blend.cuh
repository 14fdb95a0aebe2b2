// How query turns distances into weights (rule 9) and writes the weighted sum of the features. Its names are query.cu's
// own.
#pragma once

#include <cfloat>

#include "device.cuh"
#include "join.cuh"
#include "numbers.cuh"
#include "reduce.cuh"
#include "weigh.cuh"

namespace hash3d::cuda {
namespace {

constexpr int kAtOnce = 2;  // pieces a thread of `blend` loads before it writes the first

// Squared distance, at most FLT_MAX where latents were measured, so that a softmax stays defined.
__device__ float distance_of(const Found& found, int64_t row, int queue, int candidate, bool limited) {
  double sum = 0.0;
  for (int split = 0; split < found.splits; ++split) {
    sum += found.distances[(row * found.splits + split) * queue + candidate];
  }
  return limited && !(sum < FLT_MAX) ? FLT_MAX : static_cast<float>(sum);
}

// Eq. 7: softmax of negative squared distances, the largest exponent subtracted.
struct Softmax {
  const Found& found;
  int64_t row;
  int queue;
  bool limited;
  float nearest, sum;

  __device__ Softmax(const Found& found, const Config& config, int64_t row, int count)
      : found(found), row(row), queue(config.queue_length), limited(config.weighting == Weighting::kSoftmax) {
    float least[1] = {INFINITY}, total[1] = {0.0f};
    for (int i = threadIdx.x; i < count; i += kThreads) least[0] = fminf(least[0], distance(i));
    block_reduce(least, Least{});
    nearest = least[0];
    for (int i = threadIdx.x; i < count; i += kThreads) total[0] += expf(nearest - distance(i));
    block_reduce(total, Add{});
    sum = total[0];
  }
  __device__ float distance(int candidate) const { return distance_of(found, row, queue, candidate, limited); }
  __device__ float weight(int candidate) const { return expf(nearest - distance(candidate)) / sum; }
};

__device__ bool is_hit(const Found& found, int64_t row) {
  if (found.grid[row] < 0) return false;
  bool finite = true;
  for (int split = 0; split < found.splits; ++split) finite = finite && found.finite[row * found.splits + split] != 0;
  return finite;
}

__device__ void answer_miss(const Table& table, const Answers& answers, int64_t row) {
  const int queue = table.config.queue_length;
  for (int i = threadIdx.x; i < queue; i += kThreads) {
    answers.serials[row * queue + i] = -1;
    answers.weights[row * queue + i] = 0.0f;
  }
  if (threadIdx.x != 0) return;
  answers.hit[row] = 0;
  answers.grid[row] = -1;
  add_to(table.counters + kQueries, 1);
}

__device__ void answer_hit(const Table& table, const Answers& answers, int64_t row, const Softmax& softmax, int count) {
  const int queue = table.config.queue_length;
  for (int i = threadIdx.x; i < queue; i += kThreads) {
    answers.weights[row * queue + i] = i < count ? softmax.weight(i) : 0.0f;
  }
  if (threadIdx.x != 0) return;
  answers.hit[row] = 1;
  answers.grid[row] = softmax.found.grid[row];
  add_to(table.counters + kQueries, 1);
  add_to(table.counters + kHits, 1);
}

// The entries among candidates first .. first + kNear that weigh something, in their order.
struct Sources {
  float weights[kNear];
  int64_t slots[kNear];
  int used;
};

__device__ void gather(const Table& table, const int64_t* serials, const Softmax& softmax, int first, int count,
                       Sources& sources) {
  __shared__ float weights[kNear];
  const int size = count - first < kNear ? count - first : kNear, thread = threadIdx.x;
  __syncthreads();  // everybody is done with what was gathered before
  if (thread < size) weights[thread] = softmax.weight(first + thread);
  __syncthreads();
  if (thread == 0) {
    int used = 0;
    for (int i = 0; i < size; ++i) {
      if (weights[i] == 0.0f) continue;  // what weighs nothing is not read
      sources.weights[used] = weights[i];
      sources.slots[used++] = slot_of(table.config, serials[first + i]);
    }
    sources.used = used;
  }
  __syncthreads();
}

// In 32 bits where they hold both: several times as fast as in 64.
__device__ __forceinline__ int64_t quotient(int64_t number, int64_t divisor) {
  if (number >> 32 != 0 || divisor >> 32 != 0) return number / divisor;
  return static_cast<uint32_t>(number) / static_cast<uint32_t>(divisor);
}

template <typename Piece>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    blend(const Table table, const Found found, const Answers answers) {
  using Raw = typename Piece::Raw;
  __shared__ Sources sources;
  const Config& config = table.config;
  const DType type = config.feature_dtype;
  const int64_t row = blockIdx.y;
  if (!is_hit(found, row)) {
    if (blockIdx.x == 0) answer_miss(table, answers, row);
    return;
  }
  const int count = found.count[row];
  const Softmax softmax(found, config, row, count);
  if (blockIdx.x == 0) answer_hit(table, answers, row, softmax, count);

  const int64_t* serials = answers.serials + row * config.queue_length;
  const int64_t pieces = config.feature_size / Piece::kNumbers;
  const int64_t target = row * (answers.feature_stride / Piece::kNumbers);
  const int64_t each = Piece::is_scaled(type) ? config.channel_size / Piece::kNumbers : 0;  // pieces of a channel
  const int64_t channels = each > 0 ? pieces / each : 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kAtOnce;
  if (count <= kNear) gather(table, serials, softmax, 0, count, sources);
  for (int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads * kAtOnce; start < pieces; start += step) {
    float sums[kAtOnce][Piece::kNumbers];
    int64_t channel[kAtOnce] = {};
    bool first = true;
#pragma unroll
    for (int j = 0; Piece::is_scaled(type) && j < kAtOnce; ++j) {
      channel[j] = quotient(start + j * kThreads + threadIdx.x, each);
    }
    for (int begin = 0; begin < count; begin += kNear) {
      if (count > kNear) gather(table, serials, softmax, begin, count, sources);
      for (int i = 0; i < sources.used; ++i, first = false) {
        const int64_t source = sources.slots[i] * pieces;
        const float* scales = table.scales + sources.slots[i] * channels;
        Raw raw[kAtOnce] = {};
        float weights[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const int64_t place = start + j * kThreads + threadIdx.x;
          weights[j] = sources.weights[i];
          if (place >= pieces) continue;
          raw[j] = Piece::load(type, table.features, source + place);
          if (Piece::is_scaled(type)) weights[j] *= scales[channel[j]];
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          float numbers[Piece::kNumbers];
          Piece::unpack(type, raw[j], numbers);
#pragma unroll
          for (int k = 0; k < Piece::kNumbers; ++k) {
            sums[j][k] = first ? numbers[k] * weights[j] : sums[j][k] + numbers[k] * weights[j];
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t place = start + j * kThreads + threadIdx.x;
      if (place < pieces) Piece::answer(type, answers.features, target + place, sums[j]);
    }
  }
}

}  // namespace
}  // namespace hash3d::cuda

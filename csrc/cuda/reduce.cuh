// Sums and minima over a block of kThreads threads, in one fixed order: the same bits run after run.
#pragma once

#include "device.cuh"

namespace hash3d::cuda {

constexpr int kWarps = kThreads / kWarp;

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Least {
  __device__ float operator()(float a, float b) const { return fminf(a, b); }
};

// The first lane's result is that of the warp.
template <typename T, typename Combine>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_down_sync(kAllLanes, value, distance));
  }
  return value;
}

// Reduces kCount numbers of every thread; all threads get the results. All threads of the block must come here.
template <int kCount, typename Combine>
__device__ __forceinline__ void block_reduce(float (&values)[kCount], Combine combine) {
  __shared__ float parts[kWarps][kCount];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float part = warp_reduce(values[i], combine);
    if (lane == 0) parts[warp][i] = part;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = parts[0][i];
    for (int other = 1; other < kWarps; ++other) values[i] = combine(values[i], parts[other][i]);
  }
  __syncthreads();  // the next call writes to `parts` again
}

}  // namespace hash3d::cuda

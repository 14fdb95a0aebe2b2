// CUDA's names for a CPU: enough of them to compile the kernels of csrc/cuda, unchanged, as plain C++ and to run them.
//
// A block runs on one thread of the operating system, its threads are fibers that take turns there, and the blocks of a
// launch are dealt out to several such threads. Every launch is over when the call returns. emulation.cpp does the
// work.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include "cpu/half.h"

#define __CUDACC_VER_MAJOR__ 0
#define __CUDACC_VER_MINOR__ 0
#define __global__ static
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One copy per thread of the operating system, so one for the block that it runs.
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulation {

uint3 thread_index();
uint3 block_index();
uint3 block_size();
uint3 grid_size();
void sync_block();
bool sync_block_and(bool value);
void sync_warp();
unsigned ballot(bool value);
uint64_t from_lane(uint64_t value, int lane);  // of the warp; its own value where there is no such lane
int lane();
void run(dim3 blocks, dim3 threads, const std::function<void()>& kernel);

}  // namespace emulation

// Reads as a number, which only the running thread knows.
template <uint3 (*read)(), unsigned uint3::* part>
struct Number {
  operator unsigned() const { return read().*part; }
};
template <uint3 (*read)()>
struct Numbers {
  Number<read, &uint3::x> x;
  Number<read, &uint3::y> y;
  Number<read, &uint3::z> z;
};
constexpr Numbers<emulation::thread_index> threadIdx{};
constexpr Numbers<emulation::block_index> blockIdx{};
constexpr Numbers<emulation::block_size> blockDim{};
constexpr Numbers<emulation::grid_size> gridDim{};

inline void __syncthreads() { emulation::sync_block(); }
inline int __syncthreads_and(int value) { return emulation::sync_block_and(value != 0); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulation::sync_warp(); }
inline unsigned __ballot_sync(unsigned, int value) { return emulation::ballot(value != 0); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned distance) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = emulation::from_lane(bits, emulation::lane() + static_cast<int>(distance));
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// As on a GPU: an atomic orders nothing but itself.
template <typename T>
T atomicAdd(T* place, T value) {
  return __atomic_fetch_add(place, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicOr(T* place, T value) {
  return __atomic_fetch_or(place, value, __ATOMIC_RELAXED);
}

inline float __uint_as_float(uint32_t bits) { return hash3d::cpu::float_of_bits(bits); }
inline uint32_t __float_as_uint(float value) { return hash3d::cpu::bits_of_float(value); }

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoKernelImageForDevice = 209,
};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

// For tests: what every launch answers instead of running, where it is not cudaSuccess; the current device, and how
// often one was set.
namespace emulation {
inline cudaError_t refusal = cudaSuccess;
inline int device = 0, settings = 0;
}  // namespace emulation

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "refused"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = emulation::device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return emulation::device = device, ++emulation::settings, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  if (emulation::refusal != cudaSuccess) return emulation::refusal;
  emulation::run(config->gridDim, config->blockDim, [&] { std::apply(kernel, values); });
  return cudaSuccess;
}

#include "cuda_graph.h"

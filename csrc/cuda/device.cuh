// What every launcher needs: the right device for the time of a call, checked launches, the scratch memory of a call.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "hash3d/hash3d.h"

namespace hash3d::cuda {

constexpr int kThreads = 256;    // of a block, in every kernel that does not say otherwise
constexpr int kBlocksPerSm = 1;  // at least: ptxas, left to itself, sometimes takes too few registers and spills
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// What can be done where it is the build that does not fit the machine.
inline std::string remedy(cudaError_t status) {
  if (status == cudaErrorInsufficientDriver) {
    return "; this build of hash3d_cuda needs a driver for CUDA " + std::to_string(CUDART_VERSION / 1000) +
           ": install one, or build with an older nvcc";
  }
  if (status == cudaErrorNoKernelImageForDevice) {
    return "; this build of hash3d_cuda has code for compute capabilities " HASH3D_CUDA_ARCHITECTURES
           " (in tenths): build it with CUDAARCHS set to this GPU's";
  }
  return "";
}

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) + remedy(status));
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device == before_) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  // Not without need: to set a device makes a context on it, which takes memory there.
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Queues a kernel on the call's stream. What it reports is a launch that could not be made; the kernel runs later.
template <typename... Parameters, typename... Arguments>
void launch(const char* what, const Context& context, dim3 blocks, unsigned threads, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(context.stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), what);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for a loop over `items` in which a thread takes one of them at a time; at most as many as fill any GPU.
inline unsigned blocks_for(int64_t items) {
  constexpr int64_t kMostBlocks = 65536;
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(items, kThreads), 1, kMostBlocks));
}

// Hands out parts of the call's scratch memory, or, from a null pointer, finds out how much is needed.
class Scratch {
 public:
  explicit Scratch(void* begin) : begin_(static_cast<char*>(begin)) {}

  template <typename T>
  T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(begin_ + used_);
    used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    return part;
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlignment = 16;
  char* begin_;
  int64_t used_ = 0;
};

}  // namespace hash3d::cuda

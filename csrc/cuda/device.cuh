// What every launcher needs: the right device for the time of a call, checked calls, named launch arithmetic.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace hash3d::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// Blocks for a grid-stride loop over `items`, at most as many as keep every multiprocessor busy.
inline unsigned blocks_for(int64_t items, int threads) {
  constexpr int64_t kMostBlocks = 65536;
  return static_cast<unsigned>(std::min((items + threads - 1) / threads, kMostBlocks));
}

}  // namespace hash3d::cuda

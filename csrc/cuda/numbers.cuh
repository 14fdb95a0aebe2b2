// Stored numbers on the device: one at a time, or as many as 16 bytes hold.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "hash3d/hash3d.h"

namespace hash3d::cuda {

template <DType kType>
__device__ __forceinline__ float number_of(uint32_t bits) {
  if constexpr (kType == DType::kFloat32) return __uint_as_float(bits);
  if constexpr (kType == DType::kFloat16) return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  if constexpr (kType == DType::kBFloat16) return __uint_as_float(bits << 16);
}

template <DType kType>
__device__ __forceinline__ uint32_t bits_of(float number) {
  if constexpr (kType == DType::kFloat32) return __float_as_uint(number);
  if constexpr (kType == DType::kFloat16) return __half_as_ushort(__float2half_rn(number));
  if constexpr (kType == DType::kBFloat16) return __bfloat16_as_ushort(__float2bfloat16_rn(number));
}

// How a row is read and written: in pieces of 16 bytes where its address and size allow it, else number by number.
template <DType kType, bool kWide>
struct Piece {
  using Bits = std::conditional_t<kType == DType::kFloat32, uint32_t, uint16_t>;
  using Raw = std::conditional_t<kWide, uint4, Bits>;
  static constexpr int kNumbers = sizeof(Raw) / sizeof(Bits);

  static __device__ __forceinline__ void unpack(const Raw& raw, float (&numbers)[kNumbers]) {
    if constexpr (kWide) {
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) {
        if constexpr (kType == DType::kFloat32) {
          numbers[i] = number_of<kType>(words[i]);
        } else {
          numbers[i] = number_of<kType>(i % 2 == 0 ? words[i / 2] & 0xffffu : words[i / 2] >> 16);
        }
      }
    } else {
      numbers[0] = number_of<kType>(raw);
    }
  }

  static __device__ __forceinline__ Raw pack(const float (&numbers)[kNumbers]) {
    if constexpr (kWide) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kType == DType::kFloat32) {
          words[i] = bits_of<kType>(numbers[i]);
        } else {
          words[i] = bits_of<kType>(numbers[2 * i]) | bits_of<kType>(numbers[2 * i + 1]) << 16;
        }
      }
      return uint4{words[0], words[1], words[2], words[3]};
    } else {
      return static_cast<Raw>(bits_of<kType>(numbers[0]));
    }
  }
};

// Whether rows of `size` numbers, starting at these addresses and `stride` numbers apart, can be taken in 16 bytes.
inline bool is_wide(DType type, int64_t size, int64_t stride, const void* a, const void* b) {
  const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  const uintptr_t bytes = static_cast<uintptr_t>(bytes_of(type));
  return (address(a) | address(b) | bytes * static_cast<uintptr_t>(size) | bytes * static_cast<uintptr_t>(stride)) %
             16 ==
         0;
}

// Calls `body` with the stored type and the width as compile-time constants.
template <typename Body>
void with_piece(DType type, bool wide, Body body) {
  const auto widths = [&](auto kType) {
    if (wide) {
      body(Piece<decltype(kType)::value, true>{});
    } else {
      body(Piece<decltype(kType)::value, false>{});
    }
  };
  switch (type) {
    case DType::kFloat32:
      return widths(std::integral_constant<DType, DType::kFloat32>{});
    case DType::kFloat16:
      return widths(std::integral_constant<DType, DType::kFloat16>{});
    case DType::kBFloat16:
      return widths(std::integral_constant<DType, DType::kBFloat16>{});
  }
}

}  // namespace hash3d::cuda

// Stored numbers on the device: as many at a time as 16 bytes of an answer hold, or one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "../quantise.h"
#include "hash3d/hash3d.h"

namespace hash3d::cuda {

// Without a channel's scale, as everything here.
template <DType kType>
__device__ __forceinline__ float number_of(uint32_t bits) {
  if constexpr (kType == DType::kFloat32) return __uint_as_float(bits);
  if constexpr (kType == DType::kFloat16) return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  if constexpr (kType == DType::kBFloat16) return __uint_as_float(bits << 16);
  if constexpr (kType == DType::kInt8) return __uint_as_float(0x4b000000u | (bits ^ 0x80u)) - 8388736.0f;  // 2^23 + 128
  // A float16 has the same layout with one more bit in the exponent, whose zero is 8 higher.
  if constexpr (kType == DType::kFloat8)
    return number_of<DType::kFloat16>((bits & 0x80u) << 8 | (bits & 0x7fu) << 7) * 256.0f;
}

template <DType kType>
__device__ __forceinline__ uint32_t bits_of(float number) {
  if constexpr (kType == DType::kFloat32) return __float_as_uint(number);
  if constexpr (kType == DType::kFloat16) return __half_as_ushort(__float2half_rn(number));
  if constexpr (kType == DType::kBFloat16) return __bfloat16_as_ushort(__float2bfloat16_rn(number));
  if constexpr (kType == DType::kInt8) return int8_bits(number);
  if constexpr (kType == DType::kFloat8) return float8_bits(number);
}

// A number of `kBits` in a row of 32-bit words.
template <int kBits>
__device__ __forceinline__ uint32_t part_of(const uint32_t* words, int index) {
  constexpr int kPerWord = 32 / kBits;
  if constexpr (kPerWord == 1) {
    return words[index];
  } else {
    return (words[index / kPerWord] >> (index % kPerWord * kBits)) & ((1u << kBits) - 1u);
  }
}

template <DType kType, int kNumbers>
__device__ __forceinline__ void unpack_words(const uint32_t* words, float (&numbers)[kNumbers]) {
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) numbers[i] = number_of<kType>(part_of<8 * bytes_of(kType)>(words, i));
}

template <DType kType, int kNumbers>
__device__ __forceinline__ void pack_words(const float (&numbers)[kNumbers], uint32_t* words) {
  constexpr int kBits = 8 * bytes_of(kType), kPerWord = 32 / kBits;
#pragma unroll
  for (int word = 0; word < kNumbers / kPerWord; ++word) {
    words[word] = 0;
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) words[word] |= bits_of<kType>(numbers[word * kPerWord + i]) << (i * kBits);
  }
}

// How a row is read and answered where addresses and sizes allow it: 16 bytes of an answer at a time.
template <DType kType>
struct Wide {
  static constexpr int kNumbers = 16 / bytes_of(answer_type(kType));
  static constexpr bool kScaled = is_quantised(kType);
  using Raw = std::conditional_t<kScaled, uint2, uint4>;

  static __device__ __forceinline__ constexpr bool is_scaled(DType) { return kScaled; }
  static __device__ __forceinline__ Raw load(DType, const void* rows, int64_t piece) {
    return static_cast<const Raw*>(rows)[piece];
  }
  static __device__ __forceinline__ void store(DType, void* rows, int64_t piece, const Raw& raw) {
    static_cast<Raw*>(rows)[piece] = raw;
  }
  static __device__ __forceinline__ void unpack(DType, const Raw& raw, float (&numbers)[kNumbers]) {
    if constexpr (kScaled) {
      const uint32_t words[2] = {raw.x, raw.y};
      unpack_words<kType>(words, numbers);
    } else {
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
      unpack_words<kType>(words, numbers);
    }
  }
  static __device__ __forceinline__ void answer(DType, void* rows, int64_t piece, const float (&numbers)[kNumbers]) {
    uint32_t words[4];
    pack_words<answer_type(kType)>(numbers, words);
    static_cast<uint4*>(rows)[piece] = uint4{words[0], words[1], words[2], words[3]};
  }
};

// And where they don't: number by number, of a type that is known when it runs, so that one kernel serves all.
struct Narrow {
  static constexpr int kNumbers = 1;
  static constexpr bool kScaled = false;  // not always
  using Raw = uint32_t;

  static __device__ __forceinline__ bool is_scaled(DType type) { return is_quantised(type); }
  static __device__ __forceinline__ Raw load(DType type, const void* rows, int64_t piece) {
    if (bytes_of(type) == 4) return static_cast<const uint32_t*>(rows)[piece];
    if (bytes_of(type) == 2) return static_cast<const uint16_t*>(rows)[piece];
    return static_cast<const uint8_t*>(rows)[piece];
  }
  static __device__ __forceinline__ void store(DType type, void* rows, int64_t piece, Raw raw) {
    if (bytes_of(type) == 4) {
      static_cast<uint32_t*>(rows)[piece] = raw;
    } else if (bytes_of(type) == 2) {
      static_cast<uint16_t*>(rows)[piece] = static_cast<uint16_t>(raw);
    } else {
      static_cast<uint8_t*>(rows)[piece] = static_cast<uint8_t>(raw);
    }
  }
  static __device__ __forceinline__ void unpack(DType type, Raw raw, float (&numbers)[1]) {
    switch (type) {
      case DType::kFloat32:
        numbers[0] = number_of<DType::kFloat32>(raw);
        break;
      case DType::kFloat16:
        numbers[0] = number_of<DType::kFloat16>(raw);
        break;
      case DType::kBFloat16:
        numbers[0] = number_of<DType::kBFloat16>(raw);
        break;
      case DType::kInt8:
        numbers[0] = number_of<DType::kInt8>(raw);
        break;
      case DType::kFloat8:
        numbers[0] = number_of<DType::kFloat8>(raw);
        break;
    }
  }
  static __device__ __forceinline__ void answer(DType type, void* rows, int64_t piece, const float (&numbers)[1]) {
    if (type == DType::kFloat32) {
      store(type, rows, piece, bits_of<DType::kFloat32>(numbers[0]));
    } else if (type == DType::kBFloat16) {
      store(type, rows, piece, bits_of<DType::kBFloat16>(numbers[0]));
    } else {
      store(DType::kFloat16, rows, piece, bits_of<DType::kFloat16>(numbers[0]));
    }
  }
};

// Whether a table's features can be taken in 16 bytes of an answer, whose rows are `stride` numbers apart.
inline bool is_wide(const Table& table, int64_t stride, const void* answers) {
  const Config& config = table.config;
  const auto fits = [&](const void* rows, DType type, int64_t bytes, int64_t step) {
    const int64_t width = bytes_of(type);
    const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(rows) % 16);
    return (address | width * config.feature_size | width * step) % bytes == 0;
  };
  const bool scaled = is_quantised(config.feature_dtype);
  return fits(table.features, config.feature_dtype, scaled ? 8 : 16, config.feature_size) &&
         fits(answers, answer_type(config.feature_dtype), 16, stride) && (!scaled || config.channel_size % 8 == 0);
}

// Calls `body` with the pieces that a call's rows are taken in.
template <typename Body>
void with_piece(DType type, bool wide, Body body) {
  if (!wide) return body(Narrow{});
  switch (type) {
    case DType::kFloat32:
      return body(Wide<DType::kFloat32>{});
    case DType::kFloat16:
      return body(Wide<DType::kFloat16>{});
    case DType::kBFloat16:
      return body(Wide<DType::kBFloat16>{});
    case DType::kInt8:
      return body(Wide<DType::kInt8>{});
    case DType::kFloat8:
      return body(Wide<DType::kFloat8>{});
  }
}

}  // namespace hash3d::cuda

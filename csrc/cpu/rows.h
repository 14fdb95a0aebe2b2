// Arithmetic on long rows of numbers, compiled once per instruction set and chosen at run time.
//
// Sums run in 16 float lanes over blocks of kBlock numbers and in double across blocks, without fused
// multiply-adds, so every path, and any split of a row into whole blocks, gives the same bits.
#pragma once

#include <cstdint>

#include "hash3d/hash3d.h"

namespace hash3d::cpu {

constexpr int64_t kBlock = 2048;

struct Rows {
  const char* name;
  void (*to_float)(DType dtype, const void* source, float* target, int64_t count);
  void (*from_float)(DType dtype, const float* source, void* target, int64_t count);
  // One block (count <= kBlock): sum of squares; infinite or NaN when something in it is not finite.
  // Multiplies each number in place.
  void (*scale)(float* a, float factor, int64_t count);
  // The largest magnitude among float16 numbers, as bits: 0x7c00 or more when something is not finite.
  uint16_t (*peak)(const uint16_t* a, int64_t count);
  float (*sum_squares)(const float* a, int64_t count);
  float (*dot)(const float* a, const float* b, int64_t count);
  float (*squared_distance)(const float* a, const float* b, int64_t count);
  bool (*all_finite)(const float* a, int64_t count);
  // Numbers begin .. end of target = sum of weights * sources, in their order; sources are rows of `dtype`, the target
  // of answer_type(dtype), count >= 1. Numbers of 8 bits are taken as they are: their scales belong into the weights.
  // Reads every source once and writes the target once.
  void (*blend)(DType dtype, const void* const* sources, const float* weights, int count, void* target, int64_t begin,
                int64_t end);
  // As std::memcpy, for long rows: both are fetched ahead, across the borders of pages, where the hardware stops.
  void (*copy)(void* target, const void* source, int64_t bytes);
};

extern const Rows kRowsBaseline;
#ifdef HASH3D_X86
extern const Rows kRowsAvx2;
extern const Rows kRowsAvx512;
#endif

// The path in use: the best this machine runs, or HASH3D_SIMD, or what use_simd() chose.
const Rows& rows();

}  // namespace hash3d::cpu

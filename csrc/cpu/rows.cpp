// Compiled once for each instruction set, with HASH3D_ROWS naming the table of functions it defines.
#include "rows.h"

#include "half.h"

#ifdef HASH3D_X86
#include <immintrin.h>
#endif

namespace hash3d::cpu {
namespace {

constexpr int kLanes = 16;

void halves_to_floats(const uint16_t* source, float* target, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i));
    _mm512_storeu_ps(target + i, _mm512_cvtph_ps(bits));
  }
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(bits));
  }
#endif
  for (; i < count; ++i) target[i] = float16_to_float(source[i]);
}

void floats_to_halves(const float* source, uint16_t* target, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16) {
    const __m256i bits = _mm512_cvtps_ph(_mm512_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i), bits);
  }
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), bits);
  }
#endif
  for (; i < count; ++i) target[i] = float_to_float16(source[i]);
}

void to_float(DType dtype, const void* source, float* target, int64_t count) {
  if (dtype == DType::kFloat32) {
    std::memcpy(target, source, count * sizeof(float));
  } else if (dtype == DType::kFloat16) {
    halves_to_floats(static_cast<const uint16_t*>(source), target, count);
  } else {
    const uint16_t* bits = static_cast<const uint16_t*>(source);
    for (int64_t i = 0; i < count; ++i) target[i] = bfloat16_to_float(bits[i]);
  }
}

void from_float(DType dtype, const float* source, void* target, int64_t count) {
  if (dtype == DType::kFloat32) {
    std::memcpy(target, source, count * sizeof(float));
  } else if (dtype == DType::kFloat16) {
    floats_to_halves(source, static_cast<uint16_t*>(target), count);
  } else {
    uint16_t* bits = static_cast<uint16_t*>(target);
    for (int64_t i = 0; i < count; ++i) bits[i] = float_to_bfloat16(source[i]);
  }
}

// Sums term(i) in kLanes lanes; lanes are added pairwise, in one order on every path.
template <typename Term>
float lane_sum(int64_t count, Term term) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (int lane = 0; i + lane < count; ++lane) lanes[lane] += term(i + lane);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

float sum_squares(const float* a, int64_t count) {
  return lane_sum(count, [a](int64_t i) { return a[i] * a[i]; });
}

float dot(const float* a, const float* b, int64_t count) {
  return lane_sum(count, [a, b](int64_t i) { return a[i] * b[i]; });
}

float squared_distance(const float* a, const float* b, int64_t count) {
  return lane_sum(count, [a, b](int64_t i) {
    const float difference = a[i] - b[i];
    return difference * difference;
  });
}

// x - x is 0 for finite x and NaN otherwise; NaN survives the sum.
bool all_finite(const float* a, int64_t count) {
  return lane_sum(count, [a](int64_t i) { return a[i] - a[i]; }) == 0.0f;
}

void scale(float weight, const float* source, float* target, int64_t count, bool add) {
  if (add) {
    for (int64_t i = 0; i < count; ++i) target[i] += weight * source[i];
  } else {
    for (int64_t i = 0; i < count; ++i) target[i] = weight * source[i];
  }
}

}  // namespace

extern const Rows HASH3D_ROWS = {HASH3D_ROWS_NAME, to_float,   from_float, sum_squares, dot,
                                 squared_distance, all_finite, scale};

}  // namespace hash3d::cpu

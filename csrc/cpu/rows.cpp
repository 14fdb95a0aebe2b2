// Compiled once for each instruction set, with HASH3D_ROWS naming the table of functions it defines.
#include "rows.h"

#include "../quantise.h"
#include "half.h"
#include "lanes.h"

namespace hash3d::cpu {
namespace {

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
  } else if (dtype == DType::kInt8) {
    const uint8_t* bits = static_cast<const uint8_t*>(source);
    for (int64_t i = 0; i < count; ++i) target[i] = int8_to_float(bits[i]);
  } else if (dtype == DType::kFloat8) {
    const uint8_t* bits = static_cast<const uint8_t*>(source);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) Lanes::load_float8(bits + i).store(target + i);
    for (; i < count; ++i) target[i] = float8_to_float(bits[i]);
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
  } else if (dtype == DType::kInt8) {
    uint8_t* bits = static_cast<uint8_t*>(target);
    for (int64_t i = 0; i < count; ++i) bits[i] = int8_bits(source[i]);
  } else if (dtype == DType::kFloat8) {
    uint8_t* bits = static_cast<uint8_t*>(target);
    for (int64_t i = 0; i < count; ++i) bits[i] = float8_bits(source[i]);
  } else {
    uint16_t* bits = static_cast<uint16_t*>(target);
    for (int64_t i = 0; i < count; ++i) bits[i] = float_to_bfloat16(source[i]);
  }
}

void scale(float* a, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) a[i] *= factor;
}

// Without their sign, float16 numbers are ordered as their bits are.
uint16_t peak(const uint16_t* a, int64_t count) {
  int16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int16_t magnitude = static_cast<int16_t>(a[i] & 0x7fffu);
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<uint16_t>(largest);
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

constexpr int64_t kTile = 16 * kLanes;  // sums on their way to from_float(): they stay in the first-level cache

// Numbers begin .. end of the weighted sum; `load` takes kLanes of a row of T, `one` a single number.
template <typename T, typename Load, typename One>
void blend_rows(DType dtype, const void* const* sources, const float* weights, int count, void* target, int64_t begin,
                int64_t end, Load load, One one) {
  const auto row = [sources](int source) { return static_cast<const T*>(sources[source]); };
  float sums[kTile];
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t size = end - tile < kTile ? end - tile : kTile;
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      Lanes sum = load(row(0) + tile + i) * weights[0];
      for (int source = 1; source < count; ++source) sum = sum + load(row(source) + tile + i) * weights[source];
      sum.store(sums + i);
    }
    for (; i < size; ++i) {
      sums[i] = one(row(0)[tile + i]) * weights[0];
      for (int source = 1; source < count; ++source) sums[i] += one(row(source)[tile + i]) * weights[source];
    }
    cpu::from_float(dtype, sums, static_cast<char*>(target) + tile * bytes_of(dtype), size);
  }
}

constexpr int64_t kLine = 64;           // bytes of a cache line
constexpr int64_t kCopied = 2 * kLine;  // in one turn
constexpr int64_t kFetched = 4096;      // ahead of it

// The same for numbers of 8 bits, into float16, which goes to the target out of the registers: one that weighs alone is
// converted as fast as a float16 one is copied.
template <typename Load, typename One>
void blend_bytes(const void* const* sources, const float* weights, int count, uint16_t* target, int64_t begin,
                 int64_t end, Load load, One one) {
  const auto row = [sources](int source) { return static_cast<const uint8_t*>(sources[source]); };
  const auto blend_lanes = [&](int64_t i) {
    Lanes sum = load(row(0) + i) * weights[0];
    for (int source = 1; source < count; ++source) sum = sum + load(row(source) + i) * weights[source];
    sum.store_half(target + i);
  };
  int64_t i = begin;
  for (; i + kLine <= end; i += kLine) {
    for (int source = 0; source < count; ++source) __builtin_prefetch(row(source) + i + kFetched);
    __builtin_prefetch(target + i + kFetched / 2, 1);
    __builtin_prefetch(target + i + kFetched / 2 + kLine / 2, 1);
    for (int64_t lanes = 0; lanes < kLine; lanes += kLanes) blend_lanes(i + lanes);
  }
  for (; i + kLanes <= end; i += kLanes) blend_lanes(i);
  for (; i < end; ++i) {
    float sum = one(row(0)[i]) * weights[0];
    for (int source = 1; source < count; ++source) sum += one(row(source)[i]) * weights[source];
    target[i] = float_to_float16(sum);
  }
}

void blend(DType dtype, const void* const* sources, const float* weights, int count, void* target, int64_t begin,
           int64_t end) {
  if (dtype == DType::kFloat32) {
    blend_rows<float>(
        dtype, sources, weights, count, target, begin, end, [](const float* a) { return Lanes::load(a); },
        [](float a) { return a; });
  } else if (dtype == DType::kFloat16) {
    blend_rows<uint16_t>(
        dtype, sources, weights, count, target, begin, end, [](const uint16_t* a) { return Lanes::load_half(a); },
        [](uint16_t a) { return float16_to_float(a); });
  } else if (dtype == DType::kInt8) {
    blend_bytes(
        sources, weights, count, static_cast<uint16_t*>(target), begin, end,
        [](const uint8_t* a) { return Lanes::load_int8(a); }, int8_to_float);
  } else if (dtype == DType::kFloat8) {
    blend_bytes(
        sources, weights, count, static_cast<uint16_t*>(target), begin, end,
        [](const uint8_t* a) { return Lanes::load_float8(a); }, float8_to_float);
  } else {
    blend_rows<uint16_t>(
        dtype, sources, weights, count, target, begin, end, [](const uint16_t* a) { return Lanes::load_bfloat(a); },
        [](uint16_t a) { return bfloat16_to_float(a); });
  }
}

void copy(void* target, const void* source, int64_t bytes) {
  char* to = static_cast<char*>(target);
  const char* from = static_cast<const char*>(source);
  int64_t i = 0;
  for (; i + kFetched + kCopied <= bytes; i += kCopied) {
    for (int64_t line = 0; line < kCopied; line += kLine) {
      __builtin_prefetch(from + i + kFetched + line);
      __builtin_prefetch(to + i + kFetched + line, 1);
    }
    std::memcpy(to + i, from + i, kCopied);
  }
  std::memcpy(to + i, from + i, bytes - i);
}

}  // namespace

extern const Rows HASH3D_ROWS = {HASH3D_ROWS_NAME, to_float,   from_float, scale, peak, sum_squares, dot,
                                 squared_distance, all_finite, blend,      copy};

}  // namespace hash3d::cpu

// kLanes floats at a time, for rows.cpp, which is compiled once for each instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "../quantise.h"
#include "half.h"

#ifdef HASH3D_X86
#include <immintrin.h>
#endif

namespace hash3d::cpu {
namespace {

constexpr int kLanes = 16;

// kLanes floats in as many registers as this path needs.
struct Lanes {
#if defined(__AVX512F__)
  __m512 all;
  static Lanes load(const float* a) { return {_mm512_loadu_ps(a)}; }
  static Lanes load_half(const uint16_t* a) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)))};
  }
  static Lanes load_int8(const uint8_t* a) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))))};
  }
  void store(float* a) const { _mm512_storeu_ps(a, all); }
  void store_half(uint16_t* a) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(a), _mm512_cvtps_ph(all, _MM_FROUND_TO_NEAREST_INT));
  }
  Lanes operator*(float b) const { return {_mm512_mul_ps(all, _mm512_set1_ps(b))}; }
  Lanes operator+(const Lanes& b) const { return {_mm512_add_ps(all, b.all)}; }
#elif defined(__F16C__)
  __m256 low, high;
  static Lanes load(const float* a) { return {_mm256_loadu_ps(a), _mm256_loadu_ps(a + 8)}; }
  static Lanes load_half(const uint16_t* a) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + 8)))};
  }
  static Lanes load_int8(const uint8_t* a) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bits)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bits, 8)))};
  }
  void store(float* a) const {
    _mm256_storeu_ps(a, low);
    _mm256_storeu_ps(a + 8, high);
  }
  void store_half(uint16_t* a) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(a), _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(a + 8), _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
  }
  Lanes operator*(float b) const {
    const __m256 all = _mm256_set1_ps(b);
    return {_mm256_mul_ps(low, all), _mm256_mul_ps(high, all)};
  }
  Lanes operator+(const Lanes& b) const { return {_mm256_add_ps(low, b.low), _mm256_add_ps(high, b.high)}; }
#else
  float part[kLanes];
  static Lanes load(const float* a) {
    Lanes lanes;
    std::memcpy(lanes.part, a, sizeof lanes.part);
    return lanes;
  }
  static Lanes load_half(const uint16_t* a) {
    Lanes lanes;
    for (int i = 0; i < kLanes; ++i) lanes.part[i] = float16_to_float(a[i]);
    return lanes;
  }
  static Lanes load_int8(const uint8_t* a) {
    Lanes lanes;
    for (int i = 0; i < kLanes; ++i) lanes.part[i] = int8_to_float(a[i]);
    return lanes;
  }
  void store(float* a) const { std::memcpy(a, part, sizeof part); }
  void store_half(uint16_t* a) const {
    for (int i = 0; i < kLanes; ++i) a[i] = float_to_float16(part[i]);
  }
  Lanes operator*(float b) const {
    Lanes lanes;
    for (int i = 0; i < kLanes; ++i) lanes.part[i] = part[i] * b;
    return lanes;
  }
  Lanes operator+(const Lanes& b) const {
    Lanes lanes;
    for (int i = 0; i < kLanes; ++i) lanes.part[i] = part[i] + b.part[i];
    return lanes;
  }
#endif
  static Lanes load_bfloat(const uint16_t* a) {
    float buffer[kLanes];
    for (int i = 0; i < kLanes; ++i) buffer[i] = bfloat16_to_float(a[i]);
    return load(buffer);
  }
  static Lanes load_float8(const uint8_t* a) {
#if defined(__AVX512F__) || defined(__F16C__) && defined(__AVX2__)
    // A float16 has the same layout with one more bit in the exponent, whose zero is 8 higher.
    const __m256i bits = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(bits, _mm256_set1_epi16(0x80)), 8);
    const __m256i rest = _mm256_slli_epi16(_mm256_and_si256(bits, _mm256_set1_epi16(0x7f)), 7);
    uint16_t halves[kLanes];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(halves), _mm256_or_si256(sign, rest));
    return load_half(halves) * 256.0f;
#else
    float buffer[kLanes];
    for (int i = 0; i < kLanes; ++i) buffer[i] = float8_to_float(a[i]);
    return load(buffer);
#endif
  }
};

}  // namespace
}  // namespace hash3d::cpu

// CUDA's half for a CPU.
#pragma once

#include "cpu/half.h"

struct __half {
  unsigned short bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline float __half2float(__half value) { return hash3d::cpu::float16_to_float(value.bits); }
inline __half __float2half_rn(float value) { return {hash3d::cpu::float_to_float16(value)}; }

// CUDA's bfloat16 for a CPU.
#pragma once

#include "cpu/half.h"

struct __nv_bfloat16 {
  unsigned short bits;
};
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {hash3d::cpu::float_to_bfloat16(value)}; }

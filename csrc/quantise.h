// Numbers in 8 bits: int8 and float8 e4m3, rounded to nearest even by the same arithmetic on host and device.
//
// A feature in 8 bits is a row of numbers and a float32 scale for each channel. With `peak` the channel's largest
// magnitude and `top` the type's, in float32, one operation after the other:
//
//   scale = peak / top,  stored = round(number * (top / peak)),  number = stored * scale
//
// Features come in as float16, whose range keeps all three far from float32's ends.
#pragma once

#include <string.h>

#include "keys.h"

namespace hash3d {

HASH3D_HOST_DEVICE float top_of(DType type) { return type == DType::kInt8 ? 127.0f : 448.0f; }

HASH3D_HOST_DEVICE float scale_of(DType type, float peak) { return peak / top_of(type); }

// What numbers are multiplied by before they are rounded; a channel of zeros stays one.
HASH3D_HOST_DEVICE float inverse_of(DType type, float peak) { return peak > 0.0f ? top_of(type) / peak : 0.0f; }

HASH3D_HOST_DEVICE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

HASH3D_HOST_DEVICE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// For magnitudes up to 127: adding 1.5 * 2^23 rounds to whole numbers and leaves them in the lowest bits.
HASH3D_HOST_DEVICE uint8_t int8_bits(float value) {
  return static_cast<uint8_t>(float_to_bits(value + 12582912.0f) & 0xffu);
}

HASH3D_HOST_DEVICE float int8_to_float(uint8_t bits) { return static_cast<float>(static_cast<int8_t>(bits)); }

// What is beyond 448 becomes that. Below 2^-6 numbers are multiples of 2^-9, which is what adding 2^14 rounds to.
HASH3D_HOST_DEVICE uint8_t float8_bits(float value) {
  const uint32_t bits = float_to_bits(value), rest = bits & 0x7fffffffu;
  const uint32_t normal = ((rest + 0x7ffffu + ((rest >> 20) & 1u)) >> 20) - (120u << 3);
  const uint32_t subnormal = float_to_bits(bits_to_float(rest) + 16384.0f) - 0x46800000u;
  const uint32_t code = rest < 0x3c800000u ? subnormal : normal;
  return static_cast<uint8_t>(((bits >> 24) & 0x80u) | (code < 0x7eu ? code : 0x7eu));
}

// Not for the two codes that are NaN.
HASH3D_HOST_DEVICE float float8_to_float(uint8_t bits) {
  const uint32_t rest = bits & 0x7fu;
  const float normal = bits_to_float((rest << 20) + (120u << 23));
  const float subnormal = static_cast<float>(static_cast<int32_t>(rest)) * 0.001953125f;
  return bits_to_float(float_to_bits(rest < 8u ? subnormal : normal) | static_cast<uint32_t>(bits & 0x80u) << 24);
}

}  // namespace hash3d

// Keys to cells to buckets (rules 1 and 2): arithmetic shared by host and device, float32 and 64-bit alike on both.
#pragma once

#include <math.h>

#include "hash3d/hash3d.h"

namespace hash3d {

struct Key {
  float part[kKeyDims];
};

struct Cell {
  float part[kKeyDims];  // whole numbers
};

// Azimuth in [0, period). fmod is exact; adding the period to a tiny negative may round to the period itself.
HASH3D_HOST_DEVICE float reduce_azimuth(float azimuth, float period) {
  if (!(period > 0.0f)) return azimuth;
  float reduced = fmodf(azimuth, period);
  if (reduced < 0.0f) reduced += period;
  return reduced == period ? 0.0f : reduced;
}

HASH3D_HOST_DEVICE bool is_finite(float x) { return fabsf(x) <= 3.402823466e+38f; }

HASH3D_HOST_DEVICE bool is_finite(const Key& key) {
  bool finite = true;
  for (int d = 0; d < kKeyDims; ++d) finite = finite && is_finite(key.part[d]);
  return finite;
}

HASH3D_HOST_DEVICE Key load_key(const float* keys, int64_t row) {
  Key key;
  for (int d = 0; d < kKeyDims; ++d) key.part[d] = keys[row * kKeyDims + d];
  return key;
}

HASH3D_HOST_DEVICE Key reduced(Key key, float period) {
  key.part[kAzimuth] = reduce_azimuth(key.part[kAzimuth], period);
  return key;
}

// Eq. 6. `key` is already reduced.
HASH3D_HOST_DEVICE Cell cell_of(const Key& key, const float* sizes) {
  Cell cell;
  for (int d = 0; d < kKeyDims; ++d) cell.part[d] = floorf(key.part[d] / sizes[d]);
  return cell;
}

HASH3D_HOST_DEVICE bool same_cell(const Cell& a, const float* b) {
  bool same = true;
  for (int d = 0; d < kKeyDims; ++d) same = same && a.part[d] == b[d];
  return same;
}

// A floored quotient as int64, its ends standing for what lies beyond; the conversion alone would be undefined there.
HASH3D_HOST_DEVICE int64_t whole(float floored) {
  if (floored >= 9223372036854775808.0f) return INT64_MAX;
  if (floored <= -9223372036854775808.0f) return INT64_MIN;
  return static_cast<int64_t>(floored);
}

// Teschner et al. 2003; elevation's multiplier is 1 (Eq. 6). Sums wrap around in 64 bits, the remainder is floored.
HASH3D_HOST_DEVICE int64_t bucket_of(const Cell& cell, int64_t num_buckets) {
  const uint64_t multipliers[kKeyDims] = {1u, 73856093u, 19349663u, 83492791u};
  uint64_t sum = 0;
  for (int d = 0; d < kKeyDims; ++d) sum += multipliers[d] * static_cast<uint64_t>(whole(cell.part[d]));
  const int64_t remainder = static_cast<int64_t>(sum) % num_buckets;
  return remainder < 0 ? remainder + num_buckets : remainder;
}

// Squared distance of two reduced keys in cells of one grid, the azimuth the shorter way around.
HASH3D_HOST_DEVICE float key_distance(const Key& a, const Key& b, const float* sizes, float period) {
  float sum = 0.0f;
  for (int d = 0; d < kKeyDims; ++d) {
    float difference = fabsf(a.part[d] - b.part[d]);
    if (d == kAzimuth && period > 0.0f) difference = fminf(difference, period - difference);
    const float cells = difference / sizes[d];
    sum += cells * cells;
  }
  return sum;
}

}  // namespace hash3d

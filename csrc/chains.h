// Chains of serials (rules 4 to 6 and 8), shared by host and device.
#pragma once

#include "keys.h"

namespace hash3d {

// Where a key falls in one grid.
struct Place {
  Cell cell;
  int64_t bucket;
};

HASH3D_HOST_DEVICE Place place_of(const Config& config, const Key& reduced_key, int grid) {
  Place place;
  place.cell = cell_of(reduced_key, config.sizes[grid]);
  place.bucket = bucket_of(place.cell, config.num_buckets);
  return place;
}

HASH3D_HOST_DEVICE int64_t* chain_at(const Table& table, int grid, int64_t bucket) {
  return table.chains + (grid * table.config.num_buckets + bucket) * (1 + table.config.queue_length);
}

// Rule 5: entry s is gone once entry s + capacity has been appended.
HASH3D_HOST_DEVICE bool is_live(const Config& config, int64_t serial, int64_t next_serial) {
  return serial >= 0 && next_serial - serial <= config.capacity;
}

HASH3D_HOST_DEVICE int64_t slot_of(const Config& config, int64_t serial) { return serial % config.capacity; }

// The entry `age` steps back from the newest one (0: newest), or -1 where there is none. Serials grow along the ring,
// so the first dead or unused place ends the walk.
HASH3D_HOST_DEVICE int64_t serial_at(const Config& config, const int64_t* chain, int age, int64_t next_serial) {
  if (age >= chain[0]) return -1;
  const int64_t serial = chain[1 + (chain[0] - 1 - age) % config.queue_length];
  return is_live(config, serial, next_serial) ? serial : -1;
}

// Rule 6.
HASH3D_HOST_DEVICE bool is_candidate(const Table& table, int grid, const Cell& cell, int64_t serial) {
  if (table.config.match == Match::kBucket) return true;
  const int64_t slot = slot_of(table.config, serial);
  return same_cell(cell, table.cells + (slot * table.config.grids + grid) * kKeyDims);
}

// The candidate `age` steps back from the newest entry of a place's chain, or -1 when what stands there is none.
HASH3D_HOST_DEVICE int64_t candidate_at(const Table& table, int grid, const Place& place, int age,
                                        int64_t next_serial) {
  const int64_t serial = serial_at(table.config, chain_at(table, grid, place.bucket), age, next_serial);
  return serial >= 0 && is_candidate(table, grid, place.cell, serial) ? serial : -1;
}

// Writes the candidates of a place, newest first, and -1 behind them; returns how many there are.
HASH3D_HOST_DEVICE int candidates(const Table& table, int grid, const Place& place, int64_t next_serial,
                                  int64_t* serials) {
  const int queue = table.config.queue_length;
  const int64_t* chain = chain_at(table, grid, place.bucket);
  int found = 0;
  for (int age = 0; age < queue; ++age) {
    const int64_t serial = serial_at(table.config, chain, age, next_serial);
    if (serial < 0) break;
    if (is_candidate(table, grid, place.cell, serial)) serials[found++] = serial;
  }
  for (int rest = found; rest < queue; ++rest) serials[rest] = -1;
  return found;
}

HASH3D_HOST_DEVICE bool has_candidate(const Table& table, int grid, const Place& place, int64_t next_serial) {
  const int64_t* chain = chain_at(table, grid, place.bucket);
  for (int age = 0; age < table.config.queue_length; ++age) {
    const int64_t serial = serial_at(table.config, chain, age, next_serial);
    if (serial < 0) return false;
    if (is_candidate(table, grid, place.cell, serial)) return true;
  }
  return false;
}

HASH3D_HOST_DEVICE float similarity_at(const Table& table, int grid, int64_t bucket) {
  const float average = table.similarity[grid * table.config.num_buckets + bucket];
  return average == average ? average : table.config.initial_similarity;
}

// Cosine similarity in float32; 0 where it is not defined (a zero feature, a sum beyond float32).
HASH3D_HOST_DEVICE float cosine(double dot, float norm, float other_norm) {
  const float value = static_cast<float>(dot) / (norm * other_norm);
  return is_finite(value) ? value : 0.0f;
}

// Eq. 9 in float32; the first mean is taken as it is.
HASH3D_HOST_DEVICE float running_average(float old, float mean, float decay) {
  if (old != old) return mean;
  const float kept = decay * old;
  return kept + (1.0f - decay) * mean;
}

}  // namespace hash3d

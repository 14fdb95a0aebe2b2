// A table with its memory, and numbers to put into it, for the engine's test programs.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "hash3d/hash3d.h"

namespace hash3d {

struct Owner {
  std::vector<int64_t> chains, counters;
  std::vector<float> similarity, keys, cells, norms, latents, scales;
  std::vector<char> features;
  std::vector<int32_t> joined;
  Table table;

  Owner(const Config& config, const Context& context) : table{} {
    table.config = config;
    const int64_t buckets = config.grids * config.num_buckets;
    const int64_t channels = config.channel_size > 0 ? config.feature_size / config.channel_size : 0;
    chains.resize(buckets * (1 + config.queue_length));
    similarity.resize(buckets);
    keys.resize(config.capacity * kKeyDims);
    cells.resize(config.capacity * config.grids * kKeyDims);
    norms.resize(config.capacity);
    joined.resize(config.capacity);
    latents.resize(config.capacity * config.latent_size);
    features.resize(config.capacity * config.feature_size * bytes_of(config.feature_dtype));
    scales.resize(config.capacity * channels);
    counters.resize(kCounters);
    table.chains = chains.data();
    table.similarity = similarity.data();
    table.keys = keys.data();
    table.cells = cells.data();
    table.norms = norms.data();
    table.joined = joined.data();
    table.latents = latents.data();
    table.features = features.data();
    table.scales = scales.data();
    table.counters = counters.data();
    clear(table, context);
  }
};

// Three grids of growing cells, everything else as a table has it by default.
inline Config plain_config(int64_t capacity, int64_t feature_size, int64_t latent_size) {
  Config config{};
  config.grids = 3;
  config.queue_length = 3;
  config.num_buckets = 31;
  config.capacity = capacity;
  config.feature_size = feature_size;
  config.latent_size = latent_size;
  config.feature_dtype = DType::kFloat32;
  config.match = Match::kCell;
  config.weighting = Weighting::kSoftmax;
  config.decay = 0.9f;
  config.initial_similarity = 1.0f;
  config.min_similarity = -std::numeric_limits<float>::infinity();
  config.azimuth_period = 360.0f;
  for (int grid = 0; grid < kMaxGrids; ++grid) {
    for (int d = 0; d < kKeyDims; ++d) config.sizes[grid][d] = 10.0f * static_cast<float>(grid + 1);
  }
  return config;
}

// From -1 to 1.
inline std::vector<float> numbers(int64_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

// Poses in few cells, so that they meet.
inline std::vector<float> poses(int64_t count, uint32_t seed) {
  std::vector<float> keys = numbers(count * kKeyDims, seed);
  for (float& part : keys) part *= 30.0f;
  return keys;
}

}  // namespace hash3d

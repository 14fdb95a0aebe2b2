// query and similarity: what only reads, besides the bare look-up.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../chains.h"
#include "backend.h"
#include "features.h"
#include "rows.h"

namespace hash3d::cpu {
namespace {

// Rule 8 (Eq. 8): the grid with the highest running average among those with a candidate, or -1.
int choose_grid(const Table& table, const std::vector<Place>& places) {
  float best = 0.0f;
  int chosen = -1;
  for (int grid = 0; grid < table.config.grids; ++grid) {
    const float average = similarity_at(table, grid, places[grid].bucket);
    if (chosen >= 0 && !(average > best)) continue;
    if (!has_candidate(table, grid, places[grid], table.counters[kNextSerial])) continue;
    best = average;
    chosen = grid;
  }
  return chosen >= 0 && best < table.config.min_similarity ? -1 : chosen;
}

// Eq. 7: softmax of negative squared distances, the largest exponent subtracted.
void softmax(const Table& table, const float* latent, const int64_t* serials, int count, float* weights) {
  const int64_t size = table.config.latent_size;
  float nearest = std::numeric_limits<float>::infinity();
  for (int i = 0; i < count; ++i) {
    weights[i] = latent_distance(latent, table.latents + slot_of(table.config, serials[i]) * size, size);
    nearest = std::min(nearest, weights[i]);
  }
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) sum += weights[i] = std::exp(nearest - weights[i]);
  for (int i = 0; i < count; ++i) weights[i] /= sum;
}

// The whole weight on the candidate with the nearest key; ties go to the newest, which comes first.
void nearest_key(const Table& table, int grid, const Key& key, const int64_t* serials, int count, float* weights) {
  const Config& config = table.config;
  int best = 0;
  float nearest = std::numeric_limits<float>::infinity();
  for (int i = 0; i < count; ++i) {
    const Key other = reduced(load_key(table.keys, slot_of(config, serials[i])), config.azimuth_period);
    const float distance = key_distance(key, other, config.sizes[grid], config.azimuth_period);
    if (distance < nearest) {
      nearest = distance;
      best = i;
    }
    weights[i] = 0.0f;
  }
  weights[best] = 1.0f;
}

void weigh(const Table& table, int grid, const Key& key, const float* latent, const int64_t* serials, int count,
           float* weights) {
  if (table.config.weighting == Weighting::kUniform) {
    std::fill(weights, weights + count, 1.0f / static_cast<float>(count));
  } else if (table.config.weighting == Weighting::kNearestKey) {
    nearest_key(table, grid, key, serials, count, weights);
  } else {
    softmax(table, latent, serials, count, weights);
  }
}

// One item: the grid used, or -1. `serials` and `weights` are its rows of the answer, already blank.
int query_one(const Table& table, const Key& given, const float* latent, int64_t* serials, float* weights, void* target,
              int threads) {
  const Config& config = table.config;
  if (!is_finite(given)) return -1;
  const Key key = reduced(given, config.azimuth_period);
  std::vector<Place> places(config.grids);
  for (int grid = 0; grid < config.grids; ++grid) places[grid] = place_of(config, key, grid);
  const int grid = choose_grid(table, places);
  if (grid < 0 || !all_finite(latent, config.latent_size)) return -1;
  const int count = candidates(table, grid, places[grid], table.counters[kNextSerial], serials);
  weigh(table, grid, key, latent, serials, count, weights);
  std::vector<Feature> sources(count);
  for (int i = 0; i < count; ++i) sources[i] = feature_at(table, slot_of(config, serials[i]));
  blend(config, sources.data(), weights, count, target, threads);
  return grid;
}

}  // namespace

void query(const Table& table, const Items& items, const Answers& answers, int threads) {
  const Config& config = table.config;
  const int queue = config.queue_length;
  std::fill(answers.serials, answers.serials + items.count * queue, int64_t{-1});
  std::fill(answers.weights, answers.weights + items.count * queue, 0.0f);
  for (int64_t row = 0; row < items.count; ++row) {
    char* target = static_cast<char*>(answers.features) +
                   row * answers.feature_stride * bytes_of(answer_type(config.feature_dtype));
    const int grid = query_one(table, load_key(items.keys, row), items.latents + row * config.latent_size,
                               answers.serials + row * queue, answers.weights + row * queue, target, threads);
    answers.grid[row] = grid;
    answers.hit[row] = grid >= 0;
    table.counters[kHits] += grid >= 0;
  }
  table.counters[kQueries] += items.count;
}

void similarity(const Table& table, const float* keys, int64_t count, float* averages) {
  const Config& config = table.config;
  for (int64_t row = 0; row < count; ++row) {
    const Key key = load_key(keys, row);
    for (int grid = 0; grid < config.grids; ++grid) {
      averages[row * config.grids + grid] =
          is_finite(key)
              ? similarity_at(table, grid, place_of(config, reduced(key, config.azimuth_period), grid).bucket)
              : std::numeric_limits<float>::quiet_NaN();
    }
  }
}

}  // namespace hash3d::cpu

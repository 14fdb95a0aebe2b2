// append, clear and restore: everything that changes a table.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../chains.h"
#include "backend.h"
#include "features.h"
#include "pages.h"
#include "rows.h"

namespace hash3d::cpu {
namespace {

// One item on its way into the table.
struct Newcomer {
  int64_t serial;
  Key key;  // as given
  const float* latent;
  const void* feature;                      // in answer_type(feature_dtype)
  std::vector<Place> places;                // [M]
  std::vector<std::vector<int64_t>> found;  // [M] candidates
};

// Rule 5: the entry in the slot that serial `next` will take is forgotten; its serials are dead from now on.
void vacate(const Table& table, int64_t serial) {
  const int64_t slot = slot_of(table.config, serial);
  if (table.joined[slot] > 0) --table.counters[kLive];
  table.joined[slot] = 0;
  table.counters[kNextSerial] = serial + 1;
}

void find_candidates(const Table& table, Newcomer& item) {
  const Config& config = table.config;
  const Key key = reduced(item.key, config.azimuth_period);
  item.places.resize(config.grids);
  item.found.assign(config.grids, {});
  std::vector<int64_t> serials(config.queue_length);
  for (int grid = 0; grid < config.grids; ++grid) {
    item.places[grid] = place_of(config, key, grid);
    const int count = candidates(table, grid, item.places[grid], table.counters[kNextSerial], serials.data());
    item.found[grid].assign(serials.begin(), serials.begin() + count);
  }
}

// The candidates of all grids, each once, ascending.
std::vector<int64_t> distinct(const Newcomer& item) {
  std::vector<int64_t> all;
  for (const auto& found : item.found) all.insert(all.end(), found.begin(), found.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

// Rule 7, for every grid; `others` ascending, `cosines` in their order.
void update_similarity(const Table& table, const Newcomer& item, const std::vector<int64_t>& others,
                       const std::vector<float>& cosines) {
  for (int grid = 0; grid < table.config.grids; ++grid) {
    const auto& found = item.found[grid];
    if (found.empty()) continue;
    double sum = 0.0;
    for (int64_t serial : found) {
      sum += cosines[std::lower_bound(others.begin(), others.end(), serial) - others.begin()];
    }
    float& average = table.similarity[grid * table.config.num_buckets + item.places[grid].bucket];
    average = running_average(average, static_cast<float>(sum / static_cast<double>(found.size())), table.config.decay);
  }
}

// Rules 3 and 4: into the ring of one chain; whoever is pushed out and stands in no other chain is no longer live.
void join(const Table& table, int grid, const Place& place, int64_t serial) {
  const Config& config = table.config;
  int64_t* chain = chain_at(table, grid, place.bucket);
  int64_t& ring = chain[1 + chain[0] % config.queue_length];
  if (is_live(config, ring, table.counters[kNextSerial]) && --table.joined[slot_of(config, ring)] == 0) {
    --table.counters[kLive];
  }
  ring = serial;
  ++chain[0];
  if (table.joined[slot_of(config, serial)]++ == 0) ++table.counters[kLive];
}

void settle(const Table& table, const Newcomer& item, float norm) {
  const Config& config = table.config;
  const int64_t slot = slot_of(config, item.serial);
  std::memcpy(table.keys + slot * kKeyDims, item.key.part, sizeof item.key.part);
  std::memcpy(table.latents + slot * config.latent_size, item.latent, config.latent_size * sizeof(float));
  if (!is_quantised(config.feature_dtype)) {
    const int64_t bytes = config.feature_size * bytes_of(config.feature_dtype);
    rows().copy(static_cast<char*>(table.features) + slot * bytes, item.feature, bytes);
  }
  table.norms[slot] = norm;
  for (int grid = 0; grid < config.grids; ++grid) {
    const Place& place = item.places[grid];
    std::memcpy(table.cells + (slot * config.grids + grid) * kKeyDims, place.cell.part, sizeof place.cell.part);
    join(table, grid, place, item.serial);
  }
}

// The feature as it will be stored. One of 8 bits is written to its slot, which nothing refers to yet; false where
// something in it is not finite.
bool prepare(const Table& table, const Newcomer& item, int threads, Feature* feature) {
  const Config& config = table.config;
  *feature = {item.feature, nullptr};
  if (!is_quantised(config.feature_dtype)) return true;
  const int64_t slot = slot_of(config, item.serial), channels = config.feature_size / config.channel_size;
  uint8_t* numbers = static_cast<uint8_t*>(table.features) + slot * config.feature_size;
  float* scales = table.scales + slot * channels;
  *feature = {numbers, scales};
  return quantise(config, static_cast<const uint16_t*>(item.feature), numbers, scales, threads);
}

bool append_one(const Table& table, Newcomer& item, int threads) {
  const Config& config = table.config;
  vacate(table, item.serial);
  if (!is_finite(item.key) || !all_finite(item.latent, config.latent_size)) return false;
  find_candidates(table, item);
  const std::vector<int64_t> others = distinct(item);
  std::vector<Feature> features(others.size());
  for (size_t i = 0; i < others.size(); ++i) features[i] = feature_at(table, slot_of(config, others[i]));
  std::vector<double> dots(others.size());
  double squared_norm = 0.0;
  Feature own;
  if (!prepare(table, item, threads, &own) ||
      !measure(config, own, features.data(), static_cast<int>(others.size()), threads, &squared_norm, dots.data())) {
    return false;
  }
  const float norm = std::sqrt(static_cast<float>(squared_norm));
  std::vector<float> cosines(others.size());
  for (size_t i = 0; i < others.size(); ++i) {
    cosines[i] = cosine(dots[i], norm, table.norms[slot_of(config, others[i])]);
  }
  update_similarity(table, item, others, cosines);
  settle(table, item, norm);
  return true;
}

}  // namespace

void clear(const Table& table) {
  const Config& config = table.config;
  const int64_t buckets = config.grids * config.num_buckets, stride = 1 + config.queue_length;
  prefer_huge_pages(table.chains, buckets * stride * static_cast<int64_t>(sizeof *table.chains));
  std::fill(table.chains, table.chains + buckets * stride, int64_t{-1});
  for (int64_t bucket = 0; bucket < buckets; ++bucket) table.chains[bucket * stride] = 0;
  std::fill(table.similarity, table.similarity + buckets, std::numeric_limits<float>::quiet_NaN());
  std::fill(table.joined, table.joined + config.capacity, 0);
  std::fill(table.counters, table.counters + kCounters, int64_t{0});
}

void append(const Table& table, const Items& items, int64_t* serials, int threads) {
  const Config& config = table.config;
  Newcomer item;
  for (int64_t row = 0; row < items.count; ++row) {
    if (items.skip != nullptr && items.skip[row] != 0) {
      serials[row] = -1;
      continue;
    }
    item.serial = table.counters[kNextSerial];
    item.key = load_key(items.keys, row);
    item.latent = items.latents + row * config.latent_size;
    item.feature = static_cast<const char*>(items.features) +
                   row * config.feature_size * bytes_of(answer_type(config.feature_dtype));
    const bool stored = append_one(table, item, threads);
    if (!stored) ++table.counters[kRejected];
    serials[row] = stored ? item.serial : -1;
  }
}

void restore(const Table& table, const int64_t* serials, const uint8_t* member, int64_t count, int32_t* overflow) {
  const Config& config = table.config;
  *overflow = 0;
  for (int64_t row = 0; row < count; ++row) {
    const int64_t slot = slot_of(config, serials[row]);
    const Key key = reduced(load_key(table.keys, slot), config.azimuth_period);
    double squared_norm = 0.0;
    measure(config, feature_at(table, slot), nullptr, 0, 1, &squared_norm, nullptr);
    table.norms[slot] = std::sqrt(static_cast<float>(squared_norm));
    for (int grid = 0; grid < config.grids; ++grid) {
      const Place place = place_of(config, key, grid);
      std::memcpy(table.cells + (slot * config.grids + grid) * kKeyDims, place.cell.part, sizeof place.cell.part);
      if (!member[row * config.grids + grid]) continue;
      if (*chain_at(table, grid, place.bucket) >= config.queue_length) {
        *overflow = 1;
        return;
      }
      join(table, grid, place, serials[row]);
    }
  }
}

}  // namespace hash3d::cpu

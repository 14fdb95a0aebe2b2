// The bare look-up of many keys. For each key and grid it must move 16 bytes of key, 8 + 8 Q of chain, 16 for each
// live entry's cell and 8 Q of answer; what it costs is cache misses, so chains and cells are fetched ahead.
#include <algorithm>
#include <vector>

#include "../chains.h"
#include "backend.h"
#include "divide.h"
#include "pages.h"
#include "pool.h"

namespace hash3d::cpu {
namespace {

constexpr int64_t kSpan = 4096;           // keys in one task of the pool
constexpr int kAhead = 16;                // keys whose memory is fetched ahead: enough to hide a cache miss
constexpr float kWholeFrom = 8388608.0f;  // 2^23: from here on every float is whole
constexpr int64_t kMultipliers[kKeyDims] = {1, 73856093, 19349663, 83492791};  // as in bucket_of()

// The table with its divisors; its answers are those of chains.h and keys.h, from fewer instructions.
class Finder {
 public:
  explicit Finder(const Table& table)
      : table_(table),
        config_(table.config),
        next_(table.counters[kNextSerial]),
        buckets_(config_.num_buckets),
        slots_(config_.capacity),
        ring_(config_.queue_length) {}

  // Writes the answers to keys begin .. end.
  void find(const float* keys, int64_t begin, int64_t end, int64_t* serials) const {
    std::vector<Place> places(kAhead * config_.grids);
    bool finite[kAhead];
    const int64_t width = config_.grids * config_.queue_length;
    for (int64_t batch = begin; batch < end; batch += kAhead) {
      const int count = static_cast<int>(std::min<int64_t>(kAhead, end - batch));
      for (int i = 0; i < count; ++i) {
        finite[i] = locate(load_key(keys, batch + i), &places[i * config_.grids]);
      }
      for (int i = 0; i < count; ++i) {
        if (finite[i]) fetch_cells(&places[i * config_.grids]);
      }
      for (int i = 0; i < count; ++i) answer(&places[i * config_.grids], finite[i], serials + (batch + i) * width);
    }
  }

 private:
  // A key's place in every grid, its chains on their way into the cache; false for a key that is not finite.
  bool locate(const Key& key, Place* places) const {
    if (!is_finite(key)) return false;
    const float azimuth = key.part[kAzimuth], period = config_.azimuth_period;
    const Key turned = azimuth >= 0.0f && azimuth < period ? key : reduced(key, period);
    for (int grid = 0; grid < config_.grids; ++grid) {
      places[grid] = place(turned, grid);
      __builtin_prefetch(chain_at(table_, grid, places[grid].bucket));
    }
    return true;
  }

  Place place(const Key& key, int grid) const {
    float quotients[kKeyDims];
    bool small = true;
    for (int d = 0; d < kKeyDims; ++d) quotients[d] = key.part[d] / config_.sizes[grid][d];
    for (int d = 0; d < kKeyDims; ++d) small &= fabsf(quotients[d]) < kWholeFrom;
    if (!small) return place_of(config_, key, grid);
    Place place;
    int64_t sum = 0;
    for (int d = 0; d < kKeyDims; ++d) {
      const int32_t towards_zero = static_cast<int32_t>(quotients[d]);
      const int32_t floored = towards_zero - (static_cast<float>(towards_zero) > quotients[d]);
      place.cell.part[d] = static_cast<float>(floored);
      sum += kMultipliers[d] * floored;
    }
    place.bucket = buckets_.floored_remainder(sum);
    return place;
  }

  // Where the newest serial of a chain that has one lies in its ring.
  int newest(const int64_t* chain) const { return static_cast<int>(ring_.remainder(chain[0] - 1)); }

  const float* cell_of_entry(int64_t serial, int grid) const {
    return table_.cells + (slots_.remainder(serial) * config_.grids + grid) * kKeyDims;
  }

  void fetch_cells(const Place* places) const {
    for (int grid = 0; grid < config_.grids; ++grid) {
      const int64_t* chain = chain_at(table_, grid, places[grid].bucket);
      if (chain[0] > 0) __builtin_prefetch(cell_of_entry(std::max<int64_t>(chain[1 + newest(chain)], 0), grid));
    }
  }

  void answer(const Place* places, bool finite, int64_t* serials) const {
    const int queue = config_.queue_length;
    for (int grid = 0; grid < config_.grids; ++grid, serials += queue) {
      const int found = finite ? candidates_at(places[grid], grid, serials) : 0;
      for (int rest = found; rest < queue; ++rest) serials[rest] = -1;
    }
  }

  int candidates_at(const Place& place, int grid, int64_t* serials) const {
    const int64_t* chain = chain_at(table_, grid, place.bucket);
    if (chain[0] <= 0) return 0;
    const int length = static_cast<int>(std::min<int64_t>(chain[0], config_.queue_length));
    const bool verify = config_.match == Match::kCell;
    int found = 0;
    for (int age = 0, at = newest(chain); age < length; ++age) {
      const int64_t serial = chain[1 + at];
      at = (at == 0 ? config_.queue_length : at) - 1;
      if (!is_live(config_, serial, next_)) break;
      if (!verify || same_cell(place.cell, cell_of_entry(serial, grid))) serials[found++] = serial;
    }
    return found;
  }

  const Table& table_;
  const Config& config_;
  const int64_t next_;
  const Divisor buckets_, slots_, ring_;
};

}  // namespace

void lookup(const Table& table, const float* keys, int64_t count, int64_t* serials, int threads) {
  const int64_t answers = count * table.config.grids * table.config.queue_length;
  prefer_huge_pages(serials, answers * static_cast<int64_t>(sizeof *serials));
  const Finder finder(table);
  parallel_for((count + kSpan - 1) / kSpan, threads,
               [&](int64_t span) { finder.find(keys, span * kSpan, std::min(count, (span + 1) * kSpan), serials); });
}

}  // namespace hash3d::cpu

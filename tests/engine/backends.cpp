// The CUDA backend beside the CPU's: random tables, the same calls to both, all answers and all memory compared. In a
// build with HASH3D_EMULATE the kernels run on the CPU and can be watched by the sanitizers.
//
//   engine_backends [ROUNDS [SEED]]    exit code 0, or 1 with a line that says what differs
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "owner.h"

namespace {

using namespace hash3d;

struct Random {
  std::mt19937 engine;

  template <typename T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[engine() % choices.size()];
  }
  int64_t up_to(int64_t most) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(most + 1)); }
  bool rarely() { return engine() % 12 == 0; }
};

Config random_config(Random& random) {
  Config config = plain_config(random.pick<int64_t>({1, 2, 5, 40}), random.pick<int64_t>({1, 8, 19, 64, 5000, 4104}),
                               random.pick<int64_t>({1, 3, 300, 4100}));
  config.grids = static_cast<int>(1 + random.up_to(3));
  config.queue_length = random.pick({1, 2, 3, 3, 7, 33, 70});
  config.num_buckets = random.pick<int64_t>({1, 7, 1009});
  config.feature_dtype =
      random.pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8, DType::kFloat8});
  if (is_quantised(config.feature_dtype)) {
    const int64_t size = config.feature_size;
    config.channel_size = random.pick({size, size % 4 == 0 ? size / 4 : size, size % 8 == 0 ? int64_t{8} : int64_t{1}});
  }
  config.match = random.pick({Match::kCell, Match::kBucket});
  config.weighting = random.pick({Weighting::kSoftmax, Weighting::kNearestKey, Weighting::kUniform});
  config.azimuth_period = random.pick({360.0f, 25.0f, 0.0f});
  return config;
}

// The same calls to both tables.
class Pair {
 public:
  Pair(const Config& config, Random& random)
      : random_(random), config_(config), cpu_(config, Context{}), other_(config, context()) {}

  const char* step() {
    const auto choice = random_.engine() % 14;
    if (choice < 5) return append_both();
    if (choice < 9) return query_both();
    if (choice < 10) return lookup_both();
    if (choice < 11) return similarity_both();
    if (choice < 13) return restore_both();
    clear(cpu_.table, Context{});
    clear(other_.table, context());
    return nullptr;
  }

  // All memory that means something.
  const char* compare() const {
    if (cpu_.chains != other_.chains) return "chains";
    if (cpu_.joined != other_.joined) return "joined";
    if (cpu_.counters != other_.counters) return "counters";
    for (size_t i = 0; i < cpu_.similarity.size(); ++i) {
      if (!near(cpu_.similarity[i], other_.similarity[i], 1e-4f)) return "similarity";
    }
    for (int64_t slot = 0; slot < config_.capacity; ++slot) {
      if (cpu_.joined[slot] == 0) continue;
      if (!near(cpu_.norms[slot], other_.norms[slot], 1e-4f * cpu_.norms[slot])) return "norms";
      if (!same(cpu_.keys, other_.keys, slot, kKeyDims)) return "keys";
      if (!same(cpu_.cells, other_.cells, slot, kKeyDims * config_.grids)) return "cells";
      if (!same(cpu_.latents, other_.latents, slot, config_.latent_size)) return "latents";
      if (!same(cpu_.features, other_.features, slot, config_.feature_size * bytes_of(config_.feature_dtype))) {
        return "features";
      }
      const int64_t channels = static_cast<int64_t>(cpu_.scales.size()) / config_.capacity;
      if (!same(cpu_.scales, other_.scales, slot, channels)) return "scales";
    }
    return nullptr;
  }

 private:
  static bool near(float a, float b, float allowed) {
    return (std::isnan(a) && std::isnan(b)) || std::fabs(a - b) <= allowed;
  }

  template <typename T>
  static bool same(const std::vector<T>& a, const std::vector<T>& b, int64_t row, int64_t width) {
    return width == 0 || std::memcmp(a.data() + row * width, b.data() + row * width, width * sizeof(T)) == 0;
  }

  Context context() {
    Context context;
    context.type = DeviceType::kCuda;
    context.scratch = scratch_.data();
    return context;
  }

  // Exactly as much as is asked for, so that a sanitizer sees what lies beyond.
  Context with_scratch(int64_t bytes) {
    scratch_ = std::vector<char>(bytes);
    return context();
  }

  uint32_t seed() { return static_cast<uint32_t>(random_.engine()); }

  void spoil(std::vector<float>& values) {
    if (!values.empty() && random_.rarely()) {
      values[random_.up_to(static_cast<int64_t>(values.size()) - 1)] = random_.pick({NAN, INFINITY, -INFINITY});
    }
  }

  const char* append_both() {
    const int64_t count = 1 + random_.up_to(3);
    auto keys = poses(count, seed()), latents = numbers(count * config_.latent_size, seed());
    auto features = numbers(count * config_.feature_size, seed());
    spoil(keys);
    spoil(latents);
    spoil(features);
    std::vector<char> given(features.size() * bytes_of(type_));
    from_float(type_, features.data(), given.data(), static_cast<int64_t>(features.size()));
    std::vector<uint8_t> skip(count);
    for (uint8_t& mark : skip) mark = random_.pick<uint8_t>({0, 0, 1, 255});
    const bool some = random_.pick({true, false});
    const Items items{count, keys.data(), latents.data(), given.data(), some ? skip.data() : nullptr};
    std::vector<int64_t> a(count), b(count);
    append(cpu_.table, items, a.data(), Context{});
    append(other_.table, items, b.data(), with_scratch(append_scratch(config_, DeviceType::kCuda)));
    return a == b ? nullptr : "serials of append";
  }

  struct Answer {
    std::vector<char> features;
    std::vector<uint8_t> hit;
    std::vector<int32_t> grid;
    std::vector<int64_t> serials;
    std::vector<float> weights;

    Answer(const Config& config, int64_t count)
        : features(count * config.feature_size * bytes_of(answer_type(config.feature_dtype)), 1),
          hit(count),
          grid(count),
          serials(count * config.queue_length),
          weights(count * config.queue_length) {}
    Answers pointers(const Config& config) {
      return {features.data(), config.feature_size, hit.data(), grid.data(), serials.data(), weights.data()};
    }
  };

  const char* query_both() {
    const int64_t count = 1 + random_.up_to(3);
    auto keys = poses(count, seed()), latents = numbers(count * config_.latent_size, seed());
    spoil(keys);
    spoil(latents);
    Answer a(config_, count), b(config_, count);
    const Items items{count, keys.data(), latents.data(), nullptr};
    query(cpu_.table, items, a.pointers(config_), Context{});
    query(other_.table, items, b.pointers(config_), with_scratch(query_scratch(config_, count, DeviceType::kCuda)));
    if (a.hit != b.hit || a.grid != b.grid || a.serials != b.serials) return "candidates of query";
    for (size_t i = 0; i < a.weights.size(); ++i) {
      if (!near(a.weights[i], b.weights[i], 1e-3f)) return "weights of query";
    }
    std::vector<float> x(count * config_.feature_size), y(x.size());
    to_float(type_, a.features.data(), x.data(), static_cast<int64_t>(x.size()));
    to_float(type_, b.features.data(), y.data(), static_cast<int64_t>(y.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      if (!near(x[i], y[i], 1e-2f)) return "features of query";
    }
    return nullptr;
  }

  const char* lookup_both() {
    const int64_t count = random_.up_to(40);
    auto keys = poses(count, seed());
    spoil(keys);
    std::vector<int64_t> a(count * config_.grids * config_.queue_length), b(a.size());
    lookup(cpu_.table, keys.data(), count, a.data(), Context{});
    lookup(other_.table, keys.data(), count, b.data(), context());
    return a == b ? nullptr : "lookup";
  }

  const char* similarity_both() {
    const int64_t count = random_.up_to(40);
    auto keys = poses(count, seed());
    spoil(keys);
    std::vector<float> a(count * config_.grids), b(a.size());
    similarity(cpu_.table, keys.data(), count, a.data(), Context{});
    similarity(other_.table, keys.data(), count, b.data(), context());
    for (size_t i = 0; i < a.size(); ++i) {
      if (!near(a[i], b[i], 1e-4f)) return "similarity";
    }
    return nullptr;
  }

  const char* restore_both() {
    const char* differs = restore_one(cpu_, Context{});
    return differs != nullptr ? differs : restore_one(other_, context());
  }

  // As a file is read that was written a moment before: what append measured has to come out alike, bit for bit.
  const char* restore_one(Owner& owner, const Context& context) {
    const auto counters = owner.counters;
    const auto similarity = owner.similarity, norms = owner.norms, cells = owner.cells;
    const auto joined = owner.joined;
    const auto serials = live(owner);
    const auto member = members(owner, serials);
    clear(owner.table, context);
    std::copy(counters.begin(), counters.end(), owner.counters.begin());
    owner.counters[kLive] = 0;
    std::fill(owner.norms.begin(), owner.norms.end(), -1.0f);
    std::fill(owner.cells.begin(), owner.cells.end(), -1.0f);
    int32_t overflow = 7;
    restore(owner.table, serials.data(), member.data(), static_cast<int64_t>(serials.size()), &overflow, context);
    std::copy(similarity.begin(), similarity.end(), owner.similarity.begin());
    if (overflow != 0) return "overflow of restore";
    if (owner.counters != counters || owner.joined != joined) return "counters before and after restore";
    for (int64_t serial : serials) {
      const int64_t slot = serial % config_.capacity;
      if (!same(norms, owner.norms, slot, 1)) return "norms before and after restore";
      if (!same(cells, owner.cells, slot, kKeyDims * config_.grids)) return "cells before and after restore";
    }
    return nullptr;
  }

  std::vector<int64_t> live(const Owner& owner) const {
    std::vector<int64_t> serials;
    const int64_t next = owner.counters[kNextSerial];
    for (int64_t serial = std::max<int64_t>(0, next - config_.capacity); serial < next; ++serial) {
      if (owner.joined[serial % config_.capacity] > 0) serials.push_back(serial);
    }
    return serials;
  }

  // In which chains they stand, [K, M].
  std::vector<uint8_t> members(const Owner& owner, const std::vector<int64_t>& serials) const {
    std::vector<uint8_t> member;
    const int64_t width = config_.num_buckets * (1 + config_.queue_length);
    for (int64_t serial : serials) {
      for (int grid = 0; grid < config_.grids; ++grid) {
        bool found = false;
        for (int64_t i = grid * width; i < (grid + 1) * width; ++i) {
          found = found || (i % (1 + config_.queue_length) != 0 && owner.chains[i] == serial);
        }
        member.push_back(found);
      }
    }
    return member;
  }

  Random& random_;
  Config config_;
  DType type_ = answer_type(config_.feature_dtype);  // of what goes in and comes out
  std::vector<char> scratch_;
  Owner cpu_, other_;
};

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 40;
  const int seed = count > 2 ? std::atoi(arguments[2]) : 0;
  if (!supports(DeviceType::kCuda)) {
    std::fprintf(stderr, "this build has no CUDA backend\n");
    return 1;
  }
  for (int round = 0; round < rounds; ++round) {
    Random random{std::mt19937(static_cast<uint32_t>(seed * 100'003 + round))};
    const Config config = random_config(random);
    Pair pair(config, random);
    for (int step = 0; step < 25; ++step) {
      const char* differs = pair.step();
      if (differs == nullptr) differs = pair.compare();
      if (differs == nullptr) continue;
      std::fprintf(stderr, "round %d, step %d: %s differ (M %d, Q %d, n %lld, capacity %lld, feature %lld, dtype %d)\n",
                   round, step, differs, config.grids, config.queue_length, static_cast<long long>(config.num_buckets),
                   static_cast<long long>(config.capacity), static_cast<long long>(config.feature_size),
                   static_cast<int>(config.feature_dtype));
      return 1;
    }
  }
  std::printf("%d rounds, no difference\n", rounds);
  return 0;
}

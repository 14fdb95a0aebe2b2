#include "features.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <vector>

#include "../chains.h"
#include "../quantise.h"
#include "pool.h"
#include "rows.h"

namespace hash3d::cpu {
namespace {

constexpr int64_t kSpan = 32 * kBlock;  // one task of the pool: 64 Ki numbers

const char* at(const void* row, DType dtype, int64_t index) {
  return static_cast<const char*>(row) + index * bytes_of(dtype);
}

char* at(void* row, DType dtype, int64_t index) { return static_cast<char*>(row) + index * bytes_of(dtype); }

// Calls body(channel, from, to) for the parts of numbers begin .. end that share a scale.
template <typename Body>
void for_channels(const Config& config, int64_t begin, int64_t end, Body body) {
  for (int64_t from = begin, to; from < end; from = to) {
    const int64_t channel = from / config.channel_size;
    to = std::min(end, (channel + 1) * config.channel_size);
    body(channel, from, to);
  }
}

// The block as floats: itself when it is stored so, else converted into `buffer`.
const float* block_of(const Config& config, const Feature& feature, int64_t begin, int64_t count, float* buffer) {
  const DType dtype = config.feature_dtype;
  if (dtype == DType::kFloat32) return static_cast<const float*>(feature.numbers) + begin;
  rows().to_float(dtype, at(feature.numbers, dtype, begin), buffer, count);
  if (is_quantised(dtype)) {
    for_channels(config, begin, begin + count, [&](int64_t channel, int64_t from, int64_t to) {
      rows().scale(buffer + (from - begin), feature.scales[channel], to - from);
    });
  }
  return buffer;
}

// One channel into 8 bits; whether it is finite.
bool quantise_channel(DType dtype, const uint16_t* given, int64_t size, uint8_t* numbers, float* scale) {
  const uint16_t bits = rows().peak(given, size);
  if (bits >= 0x7c00u) return false;
  float peak;
  rows().to_float(DType::kFloat16, &bits, &peak, 1);
  *scale = scale_of(dtype, peak);
  float buffer[kBlock];
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t count = std::min(kBlock, size - begin);
    rows().to_float(DType::kFloat16, given + begin, buffer, count);
    rows().scale(buffer, inverse_of(dtype, peak), count);
    rows().from_float(dtype, buffer, numbers + begin, count);
  }
  return true;
}

// Numbers begin .. end of a sum of features in 8 bits: what a source weighs is its weight times the channel's scale.
void blend_channels(const Config& config, const std::vector<Feature>& sources, const std::vector<float>& weights,
                    void* target, int64_t begin, int64_t end) {
  std::vector<const void*> numbers(sources.size());
  std::vector<float> factors(sources.size());
  for (size_t i = 0; i < sources.size(); ++i) numbers[i] = sources[i].numbers;
  for_channels(config, begin, end, [&](int64_t channel, int64_t from, int64_t to) {
    for (size_t i = 0; i < sources.size(); ++i) factors[i] = weights[i] * sources[i].scales[channel];
    rows().blend(config.feature_dtype, numbers.data(), factors.data(), static_cast<int>(numbers.size()), target, from,
                 to);
  });
}

int64_t spans_of(int64_t size) { return (size + kSpan - 1) / kSpan; }

template <typename Body>
void for_blocks(int64_t span, int64_t size, Body body) {
  const int64_t end = std::min(size, (span + 1) * kSpan);
  for (int64_t begin = span * kSpan; begin < end; begin += kBlock) body(begin, std::min(kBlock, end - begin));
}

// Whether row `place` alone gives the same numbers as the sum: its weight is exactly 1, and the others' are 0 or too
// small to change any float16. Those add at most 2^-42 * 65504 < 2^-26, less than half of the smallest distance between
// two of them, 2^-24. The other two types reach too far for such a bound.
bool stands_alone(DType dtype, const std::vector<float>& weights, size_t place) {
  constexpr double kUnseen = 0x1p-42;
  double others = 0.0;
  for (size_t i = 0; i < weights.size(); ++i) others += i == place ? 0.0 : weights[i];
  return weights[place] == 1.0f && (others == 0.0 || (dtype == DType::kFloat16 && others <= kUnseen));
}

}  // namespace

float latent_distance(const float* a, const float* b, int64_t count) {
  double sum = 0.0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    sum += rows().squared_distance(a + begin, b + begin, std::min(kBlock, count - begin));
  }
  return sum < FLT_MAX ? static_cast<float>(sum) : FLT_MAX;
}

bool all_finite(const float* a, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    if (!rows().all_finite(a + begin, std::min(kBlock, count - begin))) return false;
  }
  return true;
}

Feature feature_at(const Table& table, int64_t slot) {
  const Config& config = table.config;
  const int64_t channels = config.channel_size > 0 ? config.feature_size / config.channel_size : 0;
  return {at(table.features, config.feature_dtype, slot * config.feature_size), table.scales + slot * channels};
}

bool quantise(const Config& config, const uint16_t* given, uint8_t* numbers, float* scales, int threads) {
  const int64_t size = config.channel_size, channels = config.feature_size / size;
  const int64_t together = std::max<int64_t>(1, kSpan / size);  // channels in one task
  std::atomic<bool> finite{true};
  parallel_for((channels + together - 1) / together, threads, [&](int64_t task) {
    const int64_t end = std::min(channels, (task + 1) * together);
    for (int64_t channel = task * together; channel < end; ++channel) {
      const int64_t begin = channel * size;
      if (quantise_channel(config.feature_dtype, given + begin, size, numbers + begin, scales + channel)) continue;
      finite.store(false, std::memory_order_relaxed);
      return;
    }
  });
  return finite.load();
}

bool measure(const Config& config, const Feature& feature, const Feature* others, int count, int threads,
             double* squared_norm, double* dots) {
  const int64_t size = config.feature_size, spans = spans_of(size), width = 1 + count;
  std::vector<double> sums(spans * width, 0.0);
  std::atomic<bool> finite{true};
  parallel_for(spans, threads, [&](int64_t span) {
    float own[kBlock], other[kBlock];
    double* sum = sums.data() + span * width;
    for_blocks(span, size, [&](int64_t begin, int64_t length) {
      const float* block = block_of(config, feature, begin, length, own);
      if (!rows().all_finite(block, length)) finite.store(false, std::memory_order_relaxed);
      sum[0] += rows().sum_squares(block, length);
      for (int i = 0; i < count; ++i) {
        sum[1 + i] += rows().dot(block, block_of(config, others[i], begin, length, other), length);
      }
    });
  });
  *squared_norm = 0.0;
  std::fill(dots, dots + count, 0.0);
  for (int64_t span = 0; span < spans; ++span) {
    *squared_norm += sums[span * width];
    for (int i = 0; i < count; ++i) dots[i] += sums[span * width + 1 + i];
  }
  return finite.load();
}

void blend(const Config& config, const Feature* sources, const float* weights, int count, void* target, int threads) {
  const DType dtype = config.feature_dtype;
  const int64_t size = config.feature_size;
  std::vector<Feature> read;
  std::vector<const void*> numbers;
  std::vector<float> kept;
  for (int i = 0; i < count; ++i) {
    if (weights[i] == 0.0f) continue;
    read.push_back(sources[i]);
    numbers.push_back(sources[i].numbers);
    kept.push_back(weights[i]);
  }
  const size_t heaviest = std::max_element(kept.begin(), kept.end()) - kept.begin();
  const bool copy = !is_quantised(dtype) && stands_alone(dtype, kept, heaviest);
  if (copy && (threads == 1 || size <= kSpan)) {
    rows().copy(target, numbers[heaviest], size * bytes_of(dtype));
    return;
  }
  parallel_for(spans_of(size), threads, [&](int64_t span) {
    const int64_t begin = span * kSpan, end = std::min(size, begin + kSpan);
    if (copy) {
      rows().copy(at(target, dtype, begin), at(numbers[heaviest], dtype, begin), (end - begin) * bytes_of(dtype));
    } else if (is_quantised(dtype)) {
      blend_channels(config, read, kept, target, begin, end);
    } else {
      rows().blend(dtype, numbers.data(), kept.data(), static_cast<int>(kept.size()), target, begin, end);
    }
  });
}

}  // namespace hash3d::cpu

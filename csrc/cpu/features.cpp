#include "features.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <vector>

#include "pool.h"
#include "rows.h"

namespace hash3d::cpu {
namespace {

constexpr int64_t kSpan = 32 * kBlock;  // one task of the pool: 64 Ki numbers

const char* at(const void* row, DType dtype, int64_t index) {
  return static_cast<const char*>(row) + index * bytes_of(dtype);
}

char* at(void* row, DType dtype, int64_t index) { return static_cast<char*>(row) + index * bytes_of(dtype); }

// The block as floats: itself when it is stored so, else converted into `buffer`.
const float* block_of(DType dtype, const void* row, int64_t begin, int64_t count, float* buffer) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(row) + begin;
  rows().to_float(dtype, at(row, dtype, begin), buffer, count);
  return buffer;
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

bool measure(DType dtype, const void* feature, const void* const* others, int count, int64_t size, int threads,
             double* squared_norm, double* dots) {
  const int64_t spans = spans_of(size), width = 1 + count;
  std::vector<double> sums(spans * width, 0.0);
  std::atomic<bool> finite{true};
  parallel_for(spans, threads, [&](int64_t span) {
    float own[kBlock], other[kBlock];
    double* sum = sums.data() + span * width;
    for_blocks(span, size, [&](int64_t begin, int64_t length) {
      const float* block = block_of(dtype, feature, begin, length, own);
      if (!rows().all_finite(block, length)) finite.store(false, std::memory_order_relaxed);
      sum[0] += rows().sum_squares(block, length);
      for (int i = 0; i < count; ++i) {
        sum[1 + i] += rows().dot(block, block_of(dtype, others[i], begin, length, other), length);
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

void blend(DType dtype, const void* const* sources, const float* weights, int count, void* target, int64_t size,
           int threads) {
  std::vector<const void*> read;
  std::vector<float> kept;
  for (int i = 0; i < count; ++i) {
    if (weights[i] == 0.0f) continue;
    read.push_back(sources[i]);
    kept.push_back(weights[i]);
  }
  const size_t heaviest = std::max_element(kept.begin(), kept.end()) - kept.begin();
  const bool copy = stands_alone(dtype, kept, heaviest);
  if (copy && (threads == 1 || size <= kSpan)) {
    rows().copy(target, read[heaviest], size * bytes_of(dtype));
    return;
  }
  parallel_for(spans_of(size), threads, [&](int64_t span) {
    const int64_t begin = span * kSpan, end = std::min(size, begin + kSpan);
    if (copy) {
      rows().copy(at(target, dtype, begin), at(read[heaviest], dtype, begin), (end - begin) * bytes_of(dtype));
    } else {
      rows().blend(dtype, read.data(), kept.data(), static_cast<int>(kept.size()), target, begin, end);
    }
  });
}

}  // namespace hash3d::cpu

// query: two kernels. `weigh` finds each item's grid and candidates and measures how far their latents are; `blend`
// turns that into weights and writes the weighted sum of the features (rules 4-6 and 8-10).
//
// Bytes that must move for an item whose weight lies on one entry (at SD size nearly always): one feature read as it is
// stored, in 8 bits half of a float16 one and its scales, and one written, the item's latent and those of its
// candidates read. The rest - key, chains, cells - is under a kilobyte.
#include "backend.h"
#include "blend.cuh"
#include "device.cuh"
#include "numbers.cuh"
#include "weigh.cuh"

namespace hash3d::cuda {
namespace {

// An item is a row of blocks, and there can be this many.
constexpr int64_t kMostRows = 65535;

}  // namespace

int64_t query_scratch(const Config& config, int64_t count) {
  Scratch scratch(nullptr);
  take(scratch, config, std::min(count, kMostRows));
  return scratch.used();
}

void query(const Table& table, const Items& items, const Answers& answers, const Context& context) {
  if (items.count == 0) return;
  const DeviceGuard guard(context.device);
  const Config& config = table.config;
  Scratch scratch(context.scratch);
  const Found found = take(scratch, config, std::min(items.count, kMostRows));
  const bool wide = is_wide(table, answers.feature_stride, answers.features);
  for (int64_t first = 0; first < items.count; first += kMostRows) {
    const unsigned rows = static_cast<unsigned>(std::min(items.count - first, kMostRows));
    Answers part = answers;
    part.features = static_cast<char*>(answers.features) +
                    first * answers.feature_stride * bytes_of(answer_type(config.feature_dtype));
    part.hit += first;
    part.grid += first;
    part.serials += first * config.queue_length;
    part.weights += first * config.queue_length;
    launch("query: weigh", context, dim3(found.splits, rows), kThreads, weigh, table, items.keys + first * kKeyDims,
           items.latents + first * config.latent_size, found, part.serials);
    with_piece(config.feature_dtype, wide, [&](auto piece) {
      using Kind = decltype(piece);
      const int64_t pieces = config.feature_size / Kind::kNumbers;
      launch("query: blend", context, dim3(blocks_for(ceil_div(pieces, kAtOnce)), rows), kThreads, blend<Kind>, table,
             found, part);
    });
  }
}

}  // namespace hash3d::cuda

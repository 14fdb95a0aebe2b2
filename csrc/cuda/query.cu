// query: two kernels. `weigh` finds each item's grid and candidates and measures how far their latents are; `blend`
// turns that into weights and writes the weighted sum of the features (rules 4-6 and 8-10).
//
// Bytes that must move for an item whose weight lies on one entry (at SD size nearly always): one feature read as it is
// stored, in 8 bits half of a float16 one and its scales, and one written, the item's latent and those of its
// candidates read. The rest - key, chains, cells - is under a kilobyte.
#include <cfloat>

#include "../chains.h"
#include "backend.h"
#include "device.cuh"
#include "join.cuh"
#include "numbers.cuh"
#include "reduce.cuh"

namespace hash3d::cuda {
namespace {

constexpr int kSpan = 4096;         // numbers of a latent that one block of `weigh` takes
constexpr int64_t kMostSpans = 16;  // then the blocks take more
constexpr int kNear = 64;           // candidates whose serials, weights and features' places fit into shared memory
constexpr int kTogether = 4;        // candidates whose distances are summed in one pass over the item's latent
constexpr int kAtOnce = 2;          // pieces a thread of `blend` loads before it writes the first

// What `weigh` leaves for `blend`. S blocks share an item in `weigh`.
struct Found {
  int splits;        // S
  int32_t* grid;     // [B], -1: none
  int32_t* count;    // [B] candidates
  int32_t* finite;   // [B, S]: whether that part of the latent is
  float* distances;  // [B, S, Q]: parts of squared distances; their softmax gives the weights, whatever the weighting
  int64_t* candidates;  // [B, S, Q], only where Q > kNear: each block's own list
};

Found take(Scratch& scratch, const Config& config, int64_t count) {
  Found found{};
  found.splits = static_cast<int>(std::clamp<int64_t>(ceil_div(config.latent_size, kSpan), 1, kMostSpans));
  const int64_t rows = count * found.splits;
  found.grid = scratch.take<int32_t>(count);
  found.count = scratch.take<int32_t>(count);
  found.finite = scratch.take<int32_t>(rows);
  found.distances = scratch.take<float>(rows * config.queue_length);
  found.candidates = scratch.take<int64_t>(config.queue_length > kNear ? rows * config.queue_length : 0);
  return found;
}

// Rule 8 (Eq. 8). All threads of the block look for candidates, a grid and an age each; all get the answer.
__device__ int choose_grid(const Table& table, const Key& key, int64_t next_serial) {
  __shared__ int held[kMaxGrids];
  __shared__ float averages[kMaxGrids];
  __shared__ int chosen;
  const Config& config = table.config;
  const int thread = threadIdx.x;
  if (thread < config.grids) {
    held[thread] = 0;
    averages[thread] = similarity_at(table, thread, place_of(config, key, thread).bucket);
  }
  __syncthreads();
  for (int64_t i = thread; i < static_cast<int64_t>(config.grids) * config.queue_length; i += kThreads) {
    const int grid = static_cast<int>(i / config.queue_length), age = static_cast<int>(i % config.queue_length);
    if (candidate_at(table, grid, place_of(config, key, grid), age, next_serial) >= 0) atomicOr(&held[grid], 1);
  }
  __syncthreads();
  if (thread == 0) {
    chosen = -1;
    for (int grid = 0; grid < config.grids; ++grid) {
      if (held[grid] != 0 && (chosen < 0 || averages[grid] > averages[chosen])) chosen = grid;
    }
    if (chosen >= 0 && averages[chosen] < config.min_similarity) chosen = -1;
  }
  __syncthreads();
  return chosen;
}

// Lists the candidates of a place, newest first; all threads get their number.
__device__ int list_candidates(const Table& table, int grid, const Key& key, int64_t next_serial, int64_t* list) {
  __shared__ int total;
  if (threadIdx.x < kWarp) {
    const Place place = place_of(table.config, key, grid);
    const int lane = threadIdx.x, queue = table.config.queue_length;
    int found = 0;
    for (int first = 0; first < queue; first += kWarp) {
      const int age = first + lane;
      const int64_t serial = age < queue ? candidate_at(table, grid, place, age, next_serial) : -1;
      const unsigned holders = __ballot_sync(kAllLanes, serial >= 0);
      if (serial >= 0) list[found + __popc(holders & ((1u << lane) - 1u))] = serial;
      found += __popc(holders);
    }
    if (lane == 0) total = found;
  }
  __syncthreads();
  return total;
}

// Parts of the squared distances between numbers begin .. end of the item's latent and of its candidates'.
__device__ void measure_latents(const Table& table, const float* latent, int64_t begin, int64_t end,
                                const int64_t* list, int count, float* distances) {
  const Config& config = table.config;
  for (int first = 0; first < count; first += kTogether) {
    const float* others[kTogether];
    float sums[kTogether] = {};
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int64_t serial = list[first + j < count ? first + j : first];
      others[j] = table.latents + slot_of(config, serial) * config.latent_size;
    }
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const float own = latent[i];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const float difference = own - others[j][i];
        sums[j] += difference * difference;
      }
    }
    block_reduce(sums, Add{});
    const int j = threadIdx.x;
    if (j < kTogether && first + j < count) {
      float sum = sums[0];
#pragma unroll
      for (int k = 1; k < kTogether; ++k) sum = j == k ? sums[k] : sum;  // an index would put the array into memory
      distances[first + j] = sum;
    }
  }
}

// Which candidate has the nearest key; ties go to the newest, which comes first. All threads get the answer.
__device__ int nearest_key(const Table& table, int grid, const Key& key, const int64_t* list, int count) {
  __shared__ float distances[kThreads];
  __shared__ int places[kThreads];
  __shared__ int best;
  const Config& config = table.config;
  float nearest = INFINITY;
  int place = count;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const Key other = reduced(load_key(table.keys, slot_of(config, list[i])), config.azimuth_period);
    const float distance = key_distance(key, other, config.sizes[grid], config.azimuth_period);
    if (distance < nearest) {
      nearest = distance;
      place = i;
    }
  }
  distances[threadIdx.x] = nearest;
  places[threadIdx.x] = place;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads; ++i) {
      if (distances[i] < nearest || (distances[i] == nearest && places[i] < place)) {
        nearest = distances[i];
        place = places[i];
      }
    }
    best = place < count ? place : 0;
  }
  __syncthreads();
  return best;
}

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    weigh(const Table table, const float* keys, const float* latents, const Found found, int64_t* serials) {
  __shared__ int64_t near[kNear];
  const Config& config = table.config;
  const int split = blockIdx.x, queue = config.queue_length;
  const int64_t row = blockIdx.y, part = row * found.splits + split;
  const int64_t next_serial = table.counters[kNextSerial];
  const Key given = load_key(keys, row);
  const bool usable = is_finite(given);
  const Key key = reduced(given, config.azimuth_period);
  const int grid = usable ? choose_grid(table, key, next_serial) : -1;
  if (split == 0 && threadIdx.x == 0) found.grid[row] = grid;
  if (grid < 0) return;

  int64_t* list = queue <= kNear ? near : found.candidates + part * queue;
  const int count = list_candidates(table, grid, key, next_serial, list);
  if (split == 0) {
    if (threadIdx.x == 0) found.count[row] = count;
    for (int i = threadIdx.x; i < queue; i += kThreads) serials[row * queue + i] = i < count ? list[i] : -1;
  }

  const int64_t share = (config.latent_size + found.splits - 1) / found.splits;
  const int64_t begin = share * split, end = begin + share < config.latent_size ? begin + share : config.latent_size;
  const float* latent = latents + row * config.latent_size;
  bool finite = true;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) finite = finite && is_finite(latent[i]);
  finite = __syncthreads_and(finite);
  if (threadIdx.x == 0) found.finite[part] = finite;

  float* distances = found.distances + part * queue;
  if (config.weighting == Weighting::kSoftmax) {
    measure_latents(table, latent, begin, end, list, count, distances);
  } else {
    const bool alone = config.weighting == Weighting::kNearestKey && split == 0;
    const int best = alone ? nearest_key(table, grid, key, list, count) : 0;
    for (int i = threadIdx.x; i < count; i += kThreads) distances[i] = alone && i != best ? INFINITY : 0.0f;
  }
}

// Squared distance, at most FLT_MAX where latents were measured, so that a softmax stays defined.
__device__ float distance_of(const Found& found, int64_t row, int queue, int candidate, bool limited) {
  double sum = 0.0;
  for (int split = 0; split < found.splits; ++split) {
    sum += found.distances[(row * found.splits + split) * queue + candidate];
  }
  return limited && !(sum < FLT_MAX) ? FLT_MAX : static_cast<float>(sum);
}

// Eq. 7: softmax of negative squared distances, the largest exponent subtracted.
struct Softmax {
  const Found& found;
  int64_t row;
  int queue;
  bool limited;
  float nearest, sum;

  __device__ Softmax(const Found& found, const Config& config, int64_t row, int count)
      : found(found), row(row), queue(config.queue_length), limited(config.weighting == Weighting::kSoftmax) {
    float least[1] = {INFINITY}, total[1] = {0.0f};
    for (int i = threadIdx.x; i < count; i += kThreads) least[0] = fminf(least[0], distance(i));
    block_reduce(least, Least{});
    nearest = least[0];
    for (int i = threadIdx.x; i < count; i += kThreads) total[0] += expf(nearest - distance(i));
    block_reduce(total, Add{});
    sum = total[0];
  }
  __device__ float distance(int candidate) const { return distance_of(found, row, queue, candidate, limited); }
  __device__ float weight(int candidate) const { return expf(nearest - distance(candidate)) / sum; }
};

__device__ bool is_hit(const Found& found, int64_t row) {
  if (found.grid[row] < 0) return false;
  bool finite = true;
  for (int split = 0; split < found.splits; ++split) finite = finite && found.finite[row * found.splits + split] != 0;
  return finite;
}

__device__ void answer_miss(const Table& table, const Answers& answers, int64_t row) {
  const int queue = table.config.queue_length;
  for (int i = threadIdx.x; i < queue; i += kThreads) {
    answers.serials[row * queue + i] = -1;
    answers.weights[row * queue + i] = 0.0f;
  }
  if (threadIdx.x != 0) return;
  answers.hit[row] = 0;
  answers.grid[row] = -1;
  add_to(table.counters + kQueries, 1);
}

__device__ void answer_hit(const Table& table, const Answers& answers, int64_t row, const Softmax& softmax, int count) {
  const int queue = table.config.queue_length;
  for (int i = threadIdx.x; i < queue; i += kThreads) {
    answers.weights[row * queue + i] = i < count ? softmax.weight(i) : 0.0f;
  }
  if (threadIdx.x != 0) return;
  answers.hit[row] = 1;
  answers.grid[row] = softmax.found.grid[row];
  add_to(table.counters + kQueries, 1);
  add_to(table.counters + kHits, 1);
}

// The entries among candidates first .. first + kNear that weigh something, in their order.
struct Sources {
  float weights[kNear];
  int64_t slots[kNear];
  int used;
};

__device__ void gather(const Table& table, const int64_t* serials, const Softmax& softmax, int first, int count,
                       Sources& sources) {
  __shared__ float weights[kNear];
  const int size = count - first < kNear ? count - first : kNear, thread = threadIdx.x;
  __syncthreads();  // everybody is done with what was gathered before
  if (thread < size) weights[thread] = softmax.weight(first + thread);
  __syncthreads();
  if (thread == 0) {
    int used = 0;
    for (int i = 0; i < size; ++i) {
      if (weights[i] == 0.0f) continue;  // what weighs nothing is not read
      sources.weights[used] = weights[i];
      sources.slots[used++] = slot_of(table.config, serials[first + i]);
    }
    sources.used = used;
  }
  __syncthreads();
}

// In 32 bits where they hold both: several times as fast as in 64.
__device__ __forceinline__ int64_t quotient(int64_t number, int64_t divisor) {
  if (number >> 32 != 0 || divisor >> 32 != 0) return number / divisor;
  return static_cast<uint32_t>(number) / static_cast<uint32_t>(divisor);
}

template <typename Piece>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    blend(const Table table, const Found found, const Answers answers) {
  using Raw = typename Piece::Raw;
  __shared__ Sources sources;
  const Config& config = table.config;
  const DType type = config.feature_dtype;
  const int64_t row = blockIdx.y;
  if (!is_hit(found, row)) {
    if (blockIdx.x == 0) answer_miss(table, answers, row);
    return;
  }
  const int count = found.count[row];
  const Softmax softmax(found, config, row, count);
  if (blockIdx.x == 0) answer_hit(table, answers, row, softmax, count);

  const int64_t* serials = answers.serials + row * config.queue_length;
  const int64_t pieces = config.feature_size / Piece::kNumbers;
  const int64_t target = row * (answers.feature_stride / Piece::kNumbers);
  const int64_t each = Piece::is_scaled(type) ? config.channel_size / Piece::kNumbers : 0;  // pieces of a channel
  const int64_t channels = each > 0 ? pieces / each : 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kAtOnce;
  if (count <= kNear) gather(table, serials, softmax, 0, count, sources);
  for (int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads * kAtOnce; start < pieces; start += step) {
    float sums[kAtOnce][Piece::kNumbers];
    int64_t channel[kAtOnce] = {};
    bool first = true;
#pragma unroll
    for (int j = 0; Piece::is_scaled(type) && j < kAtOnce; ++j) {
      channel[j] = quotient(start + j * kThreads + threadIdx.x, each);
    }
    for (int begin = 0; begin < count; begin += kNear) {
      if (count > kNear) gather(table, serials, softmax, begin, count, sources);
      for (int i = 0; i < sources.used; ++i, first = false) {
        const int64_t source = sources.slots[i] * pieces;
        const float* scales = table.scales + sources.slots[i] * channels;
        Raw raw[kAtOnce] = {};
        float weights[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const int64_t place = start + j * kThreads + threadIdx.x;
          weights[j] = sources.weights[i];
          if (place >= pieces) continue;
          raw[j] = Piece::load(type, table.features, source + place);
          if (Piece::is_scaled(type)) weights[j] *= scales[channel[j]];
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          float numbers[Piece::kNumbers];
          Piece::unpack(type, raw[j], numbers);
#pragma unroll
          for (int k = 0; k < Piece::kNumbers; ++k) {
            sums[j][k] = first ? numbers[k] * weights[j] : sums[j][k] + numbers[k] * weights[j];
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t place = start + j * kThreads + threadIdx.x;
      if (place < pieces) Piece::answer(type, answers.features, target + place, sums[j]);
    }
  }
}

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

// append: items go in one after the other, so each has two kernels of its own. `store` takes the new feature to its
// slot and on that one pass measures it: is it finite, its norm, its dot products with every candidate. `settle`, one
// block, decides whether the item joins, updates averages, chains and counters (rules 3-5, 7, 10), and finds the next
// item's candidates. An item that is not finite has been written to its slot too; nothing refers to it there. Which
// items are to be skipped is known on the device only, so their kernels are launched all the same and leave at once.
//
// Bytes that must move for an item: its feature and latent read and written, the feature of every candidate read. In 8
// bits what is written, and read of candidates, is half of the float16 feature that comes in, and the scales.
#include "backend.h"
#include "device.cuh"
#include "join.cuh"
#include "numbers.cuh"
#include "reduce.cuh"
#include "store.cuh"
#include "store_scaled.cuh"

namespace hash3d::cuda {
namespace {

Plan take(Scratch& scratch, const Config& config) {
  const int64_t most = static_cast<int64_t>(config.grids) * config.queue_length;
  Plan plan{};
  plan.blocks = blocks_of_store(config);
  plan.found = scratch.take<int64_t>(most);
  plan.places = scratch.take<int32_t>(most);
  plan.counts = scratch.take<int32_t>(config.grids);
  plan.others = scratch.take<int64_t>(most);
  plan.distinct = scratch.take<int32_t>(1);
  plan.partials = scratch.take<float>((1 + most) * plan.blocks);
  plan.finite = scratch.take<int32_t>(plan.blocks);
  plan.cosines = scratch.take<float>(most);
  return plan;
}

// Where a serial stands in a list that descends, or -1.
__device__ int find_in(const int64_t* list, int count, int64_t serial) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (list[middle] > serial) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < count && list[low] == serial ? low : -1;
}

// The place in `others` of a candidate that an earlier grid has too, or -1.
__device__ int place_among_earlier(const Plan& plan, int grid, int queue, int64_t serial) {
  for (int earlier = 0; earlier < grid; ++earlier) {
    const int64_t row = static_cast<int64_t>(earlier) * queue;
    const int at = find_in(plan.found + row, plan.counts[earlier], serial);
    if (at >= 0) return plan.places[row + at];
  }
  return -1;
}

// Finds the candidates of an item about to take serial `next_serial` - 1. One warp does it, a lane per age.
__device__ void find_candidates(const Table& table, const Key& given, int64_t next_serial, const Plan& plan) {
  const Config& config = table.config;
  const int lane = threadIdx.x % kWarp, queue = config.queue_length;
  const unsigned before = (1u << lane) - 1u;
  const Key key = reduced(given, config.azimuth_period);
  const bool usable = is_finite(given);
  int distinct = 0;
  for (int grid = 0; grid < config.grids; ++grid) {
    const Place place = place_of(config, key, grid);
    const int64_t row = static_cast<int64_t>(grid) * queue;
    int count = 0;
    for (int first = 0; usable && first < queue; first += kWarp) {
      const int age = first + lane;
      const int64_t serial = age < queue ? candidate_at(table, grid, place, age, next_serial) : -1;
      const unsigned holders = __ballot_sync(kAllLanes, serial >= 0);
      int at = serial >= 0 ? place_among_earlier(plan, grid, queue, serial) : 0;
      const unsigned newcomers = __ballot_sync(kAllLanes, serial >= 0 && at < 0);
      if (serial >= 0) {
        if (at < 0) {
          at = distinct + __popc(newcomers & before);
          plan.others[at] = serial;
        }
        const int mine = count + __popc(holders & before);
        plan.found[row + mine] = serial;
        plan.places[row + mine] = at;
      }
      count += __popc(holders);
      distinct += __popc(newcomers);
    }
    if (lane == 0) plan.counts[grid] = count;
    __syncwarp();  // the next grid looks into this one's list
  }
  if (lane == 0) *plan.distinct = distinct;
}

__global__ void __launch_bounds__(kWarp) begin(const Table table, const float* keys, const Plan plan) {
  find_candidates(table, load_key(keys, 0), table.counters[kNextSerial] + 1, plan);
}

// The sum of the blocks' parts, for the first lane of the warp. restore (reset.cu) repeats its order.
__device__ double total(const float* partials, int64_t blocks) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x % kWarp; i < blocks; i += kWarp) sum += partials[i];
  return warp_reduce(sum, Add{});
}

// Rule 5: the entry in the slot is forgotten; its serials are dead from now on.
__device__ void vacate(const Table& table, int64_t slot) {
  if (table.joined[slot] > 0) add_to(table.counters + kLive, -1);
  table.joined[slot] = 0;
}

// Rule 7 for one grid.
__device__ void update_similarity(const Table& table, const Plan& plan, int grid, int64_t bucket) {
  const int64_t row = static_cast<int64_t>(grid) * table.config.queue_length;
  const int count = plan.counts[grid];
  if (count == 0) return;
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += plan.cosines[plan.places[row + i]];
  float& average = table.similarity[grid * table.config.num_buckets + bucket];
  average = running_average(average, static_cast<float>(sum / count), table.config.decay);
}

// Lets an item that `store` has measured into the table, or rejects it. All threads of the block take part.
__device__ void admit(const Table& table, const Key& given, int64_t serial, const Plan& plan, int64_t* answer) {
  __shared__ float norm;
  const Config& config = table.config;
  const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
  const int64_t slot = slot_of(config, serial);
  bool finite = is_finite(given);
  for (int64_t i = thread; i < plan.blocks; i += kThreads) finite = finite && plan.finite[i] != 0;
  finite = __syncthreads_and(finite);
  if (warp == 0) {
    const double squares = total(plan.partials, plan.blocks);
    if (lane == 0) norm = sqrtf(static_cast<float>(squares));
  }
  __syncthreads();
  const int distinct = *plan.distinct;
  for (int other = warp; other < distinct; other += kWarps) {
    const double product = total(plan.partials + (1 + other) * plan.blocks, plan.blocks);
    if (lane == 0) plan.cosines[other] = cosine(product, norm, table.norms[slot_of(config, plan.others[other])]);
  }
  if (thread == 0) vacate(table, slot);
  __syncthreads();
  if (finite && thread < config.grids) {
    const Place place = place_of(config, reduced(given, config.azimuth_period), thread);
    update_similarity(table, plan, thread, place.bucket);
    store_cell(table, thread, place.cell, slot);
    join(table, thread, place, serial, serial + 1);
  }
  __syncthreads();
  if (thread == 0) {
    if (finite) {
      table.norms[slot] = norm;
      for (int d = 0; d < kKeyDims; ++d) table.keys[slot * kKeyDims + d] = given.part[d];
    } else {
      ++table.counters[kRejected];
    }
    table.counters[kNextSerial] = serial + 1;
    *answer = finite ? serial : -1;
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    settle(const Table table, const float* keys, const uint8_t* skip, int64_t item, bool more, const Plan plan,
           int64_t* serials) {
  const int64_t serial = table.counters[kNextSerial];
  const bool skipped = is_skipped(skip, item);
  if (!skipped) {
    admit(table, load_key(keys, item), serial, plan, serials + item);
  } else if (threadIdx.x == 0) {
    serials[item] = -1;
  }
  const int64_t next_serial = skipped ? serial : serial + 1;
  if (more && threadIdx.x < kWarp) find_candidates(table, load_key(keys, item + 1), next_serial + 1, plan);
}

void store_item(const Table& table, const Items& items, int64_t item, bool wide, const Plan& plan,
                const Context& context) {
  const Config& config = table.config;
  const dim3 blocks(static_cast<unsigned>(plan.blocks));
  const float* latent = items.latents + item * config.latent_size;
  if (is_quantised(config.feature_dtype)) {
    const auto run = [&](auto piece) {
      launch("append: store", context, blocks, kThreads, store_scaled<decltype(piece)>, table, items.features, latent,
             items.skip, item, team_size(config, decltype(piece)::kNumbers), plan);
    };
    return wide ? run(Wide<DType::kInt8>{}) : run(Narrow{});
  }
  with_piece(config.feature_dtype, wide, [&](auto piece) {
    using Kind = decltype(piece);
    if constexpr (!Kind::kScaled) {
      launch("append: store", context, blocks, kThreads, store<Kind>, table, items.features, latent, items.skip, item,
             plan);
    }
  });
}

}  // namespace

int64_t append_scratch(const Config& config) {
  Scratch scratch(nullptr);
  take(scratch, config);
  return scratch.used();
}

void append(const Table& table, const Items& items, int64_t* serials, const Context& context) {
  if (items.count == 0) return;
  const DeviceGuard guard(context.device);
  const Config& config = table.config;
  Scratch scratch(context.scratch);
  const Plan plan = take(scratch, config);
  launch("append: begin", context, dim3(1), kWarp, begin, table, items.keys, plan);
  const bool wide = is_wide(table, config.feature_size, items.features);
  for (int64_t item = 0; item < items.count; ++item) {
    store_item(table, items, item, wide, plan, context);
    launch("append: settle", context, dim3(1), kThreads, settle, table, items.keys, items.skip, item,
           item + 1 < items.count, plan, serials);
  }
}

}  // namespace hash3d::cuda

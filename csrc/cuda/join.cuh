// An entry joins a chain: what append and restore have in common.
#pragma once

#include "../chains.h"
#include "device.cuh"

namespace hash3d::cuda {

__device__ __forceinline__ void add_to(int64_t* counter, int64_t number) {
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(number));
}

// Rules 3 and 4: into the ring of one chain; whoever is pushed out and stands in no other chain is no longer live. One
// thread per grid may do so at the same time: sums of whole numbers come out alike in any order.
__device__ __forceinline__ void join(const Table& table, int grid, const Place& place, int64_t serial,
                                     int64_t next_serial) {
  const Config& config = table.config;
  int64_t* chain = chain_at(table, grid, place.bucket);
  int64_t& ring = chain[1 + chain[0] % config.queue_length];
  if (is_live(config, ring, next_serial) && atomicAdd(&table.joined[slot_of(config, ring)], -1) == 1) {
    add_to(table.counters + kLive, -1);
  }
  ring = serial;
  ++chain[0];
  if (atomicAdd(&table.joined[slot_of(config, serial)], 1) == 0) add_to(table.counters + kLive, 1);
}

__device__ __forceinline__ void store_cell(const Table& table, int grid, const Cell& cell, int64_t slot) {
  float* stored = table.cells + (slot * table.config.grids + grid) * kKeyDims;
  for (int d = 0; d < kKeyDims; ++d) stored[d] = cell.part[d];
}

}  // namespace hash3d::cuda

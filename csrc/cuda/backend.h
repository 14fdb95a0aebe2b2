// The CUDA backend's entry points; hash3d.h says what they do. A build without nvcc links no_cuda.cpp and
// no_conditional.cpp, one with an nvcc older than 12.4 the latter alone: their functions refuse.
#pragma once

#include <string>

#include "hash3d/hash3d.h"

namespace hash3d::cuda {

void clear(const Table& table, const Context& context);
void append(const Table& table, const Items& items, int64_t* serials, const Context& context);
void query(const Table& table, const Items& items, const Answers& answers, const Context& context);
void lookup(const Table& table, const float* keys, int64_t count, int64_t* serials, const Context& context);
void similarity(const Table& table, const float* keys, int64_t count, float* averages, const Context& context);
void restore(const Table& table, const int64_t* serials, const uint8_t* member, int64_t count, int32_t* overflow,
             const Context& context);

void* join_pieces(const Pieces& pieces, const Context& context);
void launch_joined(void* joined, const Context& context);
void release_joined(void* joined);
std::string missing_for_joins();

// Bytes of scratch memory that append needs, and a query of `count` items.
int64_t append_scratch(const Config& config);
int64_t query_scratch(const Config& config, int64_t count);

int device_count();
std::string compiler();  // empty in a build without CUDA
std::string architectures();

}  // namespace hash3d::cuda

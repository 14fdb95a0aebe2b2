// The CPU backend's entry points; hash3d.h says what they do.
#pragma once

#include <string>
#include <vector>

#include "hash3d/hash3d.h"

namespace hash3d::cpu {

void clear(const Table& table);
void append(const Table& table, const Items& items, int64_t* serials, int threads);
void query(const Table& table, const Items& items, const Answers& answers, int threads);
void lookup(const Table& table, const float* keys, int64_t count, int64_t* serials, int threads);
void similarity(const Table& table, const float* keys, int64_t count, float* averages);
void restore(const Table& table, const int64_t* serials, const uint8_t* member, int64_t count, int32_t* overflow);
std::vector<std::string> simd_paths();

}  // namespace hash3d::cpu

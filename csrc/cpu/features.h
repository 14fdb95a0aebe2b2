// Whole-feature arithmetic on the CPU: rows split into spans of blocks, spans shared between threads.
#pragma once

#include <cstdint>

#include "hash3d/hash3d.h"

namespace hash3d::cpu {

// A feature as a table's Config has it stored: its numbers, and its channels' scales where they have 8 bits.
struct Feature {
  const void* numbers;
  const float* scales;
};

Feature feature_at(const Table& table, int64_t slot);

// Squared Euclidean distance of two latents, at most FLT_MAX (so that a softmax of such distances stays defined).
float latent_distance(const float* a, const float* b, int64_t count);

bool all_finite(const float* a, int64_t count);

// A float16 feature into 8 bits and scales, channel by channel. Returns false, with the rest undefined, when something
// in the feature is not finite.
bool quantise(const Config& config, const uint16_t* given, uint8_t* numbers, float* scales, int threads);

// One pass over a feature: its squared norm, and its dot products with `count` others. Returns false, with the rest
// undefined, when something in the feature is not finite.
bool measure(const Config& config, const Feature& feature, const Feature* others, int count, int threads,
             double* squared_norm, double* dots);

// target = sum of weight * source in float32, rounded once (Eq. 7). Sources of weight 0 are not read, nor, where they
// are stored as float16, those whose weight is too small to change one: then the other one is copied. The weights' sum
// is 1.
void blend(const Config& config, const Feature* sources, const float* weights, int count, void* target, int threads);

}  // namespace hash3d::cpu

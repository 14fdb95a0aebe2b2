// Whole-feature arithmetic on the CPU: rows split into spans of blocks, spans shared between threads.
#pragma once

#include <cstdint>

#include "hash3d/hash3d.h"

namespace hash3d::cpu {

// Squared Euclidean distance of two latents, at most FLT_MAX (so that a softmax of such distances stays defined).
float latent_distance(const float* a, const float* b, int64_t count);

bool all_finite(const float* a, int64_t count);

// One pass over a new feature: its squared norm, and its dot products with `count` others of the same dtype.
// Returns false, with the rest undefined, when something in the feature is not finite.
bool measure(DType dtype, const void* feature, const void* const* others, int count, int64_t size, int threads,
             double* squared_norm, double* dots);

// target = sum of weight * source in float32, rounded once (Eq. 7). Sources of weight 0 are not read, nor those whose
// weight is too small to change a float16: then the other one is copied. The weights' sum is 1.
void blend(DType dtype, const void* const* sources, const float* weights, int count, void* target, int64_t size,
           int threads);

}  // namespace hash3d::cpu

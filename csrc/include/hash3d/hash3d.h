// The engine's public header: a fixed-size hash table with separate chaining over (elevation, azimuth, radius,
// timestep), whose entries own a slot with a latent and a feature. No framework, no Python: pointers, sizes, a stream.
//
// The caller owns all memory. `Table` is a view of it, cheap to pass by value, host and device alike; every buffer of
// one table lies on one device. Calls on the CPU return when done. Calls on CUDA are queued on the stream, never
// synchronise and never allocate. Nothing here is safe against two calls on one table at the same time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#ifdef __CUDACC__
#define HASH3D_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HASH3D_HOST_DEVICE inline
#endif

namespace hash3d {

constexpr int kKeyDims = 4;    // elevation, azimuth, radius, timestep: key order, everywhere
constexpr int kAzimuth = 1;    // the periodic one
constexpr int kMaxGrids = 16;  // M

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kInt8 = 3, kFloat8 = 4 };  // the last: e4m3
enum class Match : int { kCell = 0, kBucket = 1 };
enum class Weighting : int { kSoftmax = 0, kNearestKey = 1, kUniform = 2 };
enum class DeviceType : int { kCpu = 0, kCuda = 1 };

HASH3D_HOST_DEVICE constexpr bool is_quantised(DType type) { return type == DType::kInt8 || type == DType::kFloat8; }
// In what features come in and answers go out: the stored type itself, unless that has 8 bits.
HASH3D_HOST_DEVICE constexpr DType answer_type(DType type) { return is_quantised(type) ? DType::kFloat16 : type; }
HASH3D_HOST_DEVICE constexpr int64_t bytes_of(DType type) {
  return type == DType::kFloat32 ? 4 : is_quantised(type) ? 1 : 2;
}

struct Config {
  int grids;             // M
  int queue_length;      // Q
  int64_t num_buckets;   // n, per grid
  int64_t capacity;      // slots
  int64_t feature_size;  // numbers in a feature
  int64_t latent_size;   // numbers in a latent
  int64_t channel_size;  // numbers of a feature that share a scale: a divisor of feature_size; 0 where none has one
  DType feature_dtype;
  Match match;
  Weighting weighting;
  float decay;               // gamma of Eq. 9
  float initial_similarity;  // of a bucket no mean has reached
  float min_similarity;      // below it a miss; -inf when off
  float azimuth_period;      // degrees; 0 when off
  float sizes[kMaxGrids][kKeyDims];
};

// Counters, in the order of `Table::counters`.
enum Counter : int { kNextSerial, kRejected, kQueries, kHits, kLive, kCounters };

struct Table {
  Config config;
  // Per grid and bucket: how many entries have joined the chain, then a ring of Q serials (-1: never used).
  // int64 [M, n, 1 + Q]. A serial that is too old (rule 5) is dead where it stands.
  int64_t* chains;
  float* similarity;  // [M, n]; NaN until the first mean
  // Per slot (entry s lies in slot s mod capacity):
  float* keys;        // [capacity, 4], as given
  float* cells;       // [capacity, M, 4]: floored quotients; floats hold them exactly, comparing them compares cells
  float* norms;       // [capacity], Euclidean, of the feature as stored
  int32_t* joined;    // [capacity], in how many chains the entry stands
  float* latents;     // [capacity, latent_size]
  void* features;     // [capacity, feature_size], feature_dtype
  float* scales;      // [capacity, feature_size / channel_size], what a channel's stored numbers are multiplied by
  int64_t* counters;  // [kCounters]
};

// Where and how a call runs. `threads` is for the CPU; `device`, `stream` (cudaStream_t) and `scratch` (memory of that
// device, aligned to 16 bytes, the call's own until the stream is past it) for CUDA.
struct Context {
  DeviceType type = DeviceType::kCpu;
  int device = 0;
  void* stream = nullptr;
  void* scratch = nullptr;
  int threads = 1;
};

// B items: keys float32 [B,4], latents float32 [B,latent_size], features [B,feature_size] in
// answer_type(feature_dtype); all dense.
// `skip` uint8 [B], for an append only: items not to store where it is not 0; null for none.
struct Items {
  int64_t count;
  const float* keys;
  const float* latents;
  const void* features;
  const uint8_t* skip = nullptr;
};

// Answers of a query. `features` rows, in answer_type(feature_dtype), are `feature_stride` numbers apart, each dense;
// rows that miss are not written.
struct Answers {
  void* features;
  int64_t feature_stride;
  uint8_t* hit;      // [B]
  int32_t* grid;     // [B], -1 on a miss
  int64_t* serials;  // [B, Q], newest first, -1 for none
  float* weights;    // [B, Q]
};

// Empties the table: serials start from 0, averages and counters are reset.
void clear(const Table& table, const Context& context);
// Stores items in order, as if one by one (rules 3-5, 7, 10); serials int64 [B], -1 for what is not finite. An item to
// skip changes nothing, uses up no serial and gets -1; a batch is stored as if it were not in it.
void append(const Table& table, const Items& items, int64_t* serials, const Context& context);
// Finds, weighs and blends (rules 4-6, 8-10).
void query(const Table& table, const Items& items, const Answers& answers, const Context& context);
// Serials of every grid's candidates: keys float32 [N,4] -> int64 [N,M,Q], newest first.
void lookup(const Table& table, const float* keys, int64_t count, int64_t* serials, const Context& context);
// Running averages of each key's buckets: keys float32 [N,4] -> float32 [N,M]; NaN for a key that is not finite.
void similarity(const Table& table, const float* keys, int64_t count, float* averages, const Context& context);
// Puts entries, ascending in serial, back into their chains: keys, latents, features are already in their slots, the
// counters are those of the saved table but for kLive, which is 0. `member` uint8 [K,M] says which chains. `overflow`
// becomes 1 where a chain would outgrow Q, and the table has to be cleared then; else 0.
void restore(const Table& table, const int64_t* serials, const uint8_t* member, int64_t count, int32_t* overflow,
             const Context& context);

// Captured work in three pieces, cudaGraph_t each, that one launch runs in this order. `need` int32 lies on the device;
// `body` runs only where it is not 0 once `before` is over.
struct Pieces {
  void* before;
  void* body;
  void* after;
  const int32_t* need;
};

// Joins the pieces by a conditional node and returns a cudaGraphExec_t to launch and, in the end, to release. The
// pieces are copied; the memory they work on is the caller's to keep. Neither waits for the device. Throws where
// `missing_for_joins` is not empty, or a node of `body` is none that conditional nodes allow: kernels, copies and fills
// of device memory, child graphs, conditional nodes.
void* join_pieces(const Pieces& pieces, const Context& context);
void launch_joined(void* joined, const Context& context);
void release_joined(void* joined);
// What this build or this machine's driver lacks for joining pieces: CUDA 12.4 or later. Empty when nothing.
std::string missing_for_joins();

// Bytes that `Context::scratch` must have for an append, and for a query of `count` items; 0 on the CPU.
int64_t append_scratch(const Config& config, DeviceType type);
int64_t query_scratch(const Config& config, int64_t count, DeviceType type);

// What this build is.
struct BuildInfo {
  std::string compiler;
  std::string simd;                     // path in use: "avx512", "avx2" or "baseline"
  std::vector<std::string> simd_paths;  // paths this machine can run
  std::string cuda;                     // nvcc's version, empty without CUDA
  std::string cuda_architectures;       // such as "75;80;90"
  int cuda_devices;                     // seen by the driver; 0 without one
};
BuildInfo build_info();
// Chooses the SIMD path by name, for tests; false if this machine can't run it.
bool use_simd(const std::string& name);
// Whether append, query, lookup, similarity and clear exist for a device type in this build.
bool supports(DeviceType type);

// Rows of numbers converted between float32 and a stored dtype, round to nearest even, without scales; for tests.
void to_float(DType dtype, const void* source, float* target, int64_t count);
void from_float(DType dtype, const float* source, void* target, int64_t count);

}  // namespace hash3d

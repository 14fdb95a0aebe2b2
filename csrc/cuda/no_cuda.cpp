// The CUDA backend of a build without nvcc.
#include <stdexcept>

#include "backend.h"

namespace hash3d::cuda {
namespace {

[[noreturn]] void refuse(const char* operation) {
  throw std::runtime_error(std::string(operation) +
                           ": this build of hash3d_cuda has no CUDA code; install nvcc and build again, or use a table "
                           "with device=\"cpu\"");
}

}  // namespace

void clear(const Table&, const Context&) { refuse("clear"); }
void append(const Table&, const Items&, int64_t*, const Context&) { refuse("append"); }
void query(const Table&, const Items&, const Answers&, const Context&) { refuse("query"); }
void lookup(const Table&, const float*, int64_t, int64_t*, const Context&) { refuse("lookup"); }
void similarity(const Table&, const float*, int64_t, float*, const Context&) { refuse("similarity"); }
void restore(const Table&, const int64_t*, const uint8_t*, int64_t, int32_t*, const Context&) { refuse("restore"); }

int64_t append_scratch(const Config&) { return 0; }
int64_t query_scratch(const Config&, int64_t) { return 0; }

int device_count() { return 0; }
std::string compiler() { return ""; }
std::string architectures() { return ""; }

}  // namespace hash3d::cuda

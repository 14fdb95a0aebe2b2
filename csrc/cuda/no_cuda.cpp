// The CUDA backend of a build without nvcc.
#include <stdexcept>

#include "backend.h"

namespace hash3d::cuda {

void refuse(const char* operation) {
  throw std::runtime_error(std::string(operation) +
                           ": this build of hash3d_cuda has no CUDA code; install nvcc and build again, or use a table "
                           "with device=\"cpu\"");
}

void lookup(const Table&, const float*, int64_t, int64_t*, const Context&) { refuse("lookup"); }

int device_count() { return 0; }
std::string compiler() { return ""; }
std::string architectures() { return ""; }

}  // namespace hash3d::cuda

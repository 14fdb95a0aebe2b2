// Joined pieces in a build whose nvcc is older than 12.4, or missing.
#include <stdexcept>

#include "backend.h"

namespace hash3d::cuda {

std::string missing_for_joins() { return "this build of hash3d_cuda was not made with CUDA 12.4 or later"; }

void* join_pieces(const Pieces&, const Context&) {
  throw std::runtime_error("conditional graph: " + missing_for_joins());
}
void launch_joined(void*, const Context&) {}  // there is none
void release_joined(void*) {}

}  // namespace hash3d::cuda

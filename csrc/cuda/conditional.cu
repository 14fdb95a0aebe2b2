// Captured pieces joined into one graph: before -> test -> (body, where the test says so) -> after. Nothing runs here
// but `test`, one thread that reads one number. All else is graph assembly, done once for very many launches.
#include "backend.h"
#include "device.cuh"

namespace hash3d::cuda {
namespace {

constexpr int kOldestDriver = 12040;  // conditional nodes as they are used here
static_assert(CUDART_VERSION >= kOldestDriver, "CMakeLists.txt takes no_conditional.cpp instead");

__global__ void test(cudaGraphConditionalHandle handle, const int32_t* need) {
  cudaGraphSetConditional(handle, *need != 0 ? 1 : 0);
}

// A graph under construction: a chain of nodes, each after the one before.
class Chain {
 public:
  Chain() { check(cudaGraphCreate(&graph_, 0), "conditional graph"); }
  ~Chain() { cudaGraphDestroy(graph_); }
  Chain(const Chain&) = delete;
  Chain& operator=(const Chain&) = delete;

  // Adds a copy of a captured piece.
  void add(void* piece, const char* what) {
    cudaGraphNode_t node;
    check(cudaGraphAddChildGraphNode(&node, graph_, &last_, count(), static_cast<cudaGraph_t>(piece)), what);
    last_ = node;
  }

  // Adds a copy of a captured piece that runs where `need` is not 0.
  void add_if(const int32_t* need, void* piece) {
    cudaGraphConditionalHandle handle;
    check(cudaGraphConditionalHandleCreate(&handle, graph_, 0, cudaGraphCondAssignDefault),
          "conditional graph: handle");
    void* arguments[] = {&handle, &need};
    cudaKernelNodeParams kernel{};
    kernel.func = reinterpret_cast<void*>(test);
    kernel.gridDim = kernel.blockDim = dim3(1);
    kernel.kernelParams = arguments;
    cudaGraphNode_t node;
    check(cudaGraphAddKernelNode(&node, graph_, &last_, count(), &kernel), "conditional graph: test");
    last_ = node;

    cudaGraphNodeParams branch{};
    branch.type = cudaGraphNodeTypeConditional;
    branch.conditional.handle = handle;
    branch.conditional.type = cudaGraphCondTypeIf;
    branch.conditional.size = 1;
    check(add_node(&node, &branch), "conditional graph: branch");
    last_ = node;
    check(cudaGraphAddChildGraphNode(&node, branch.conditional.phGraph_out[0], nullptr, 0,
                                     static_cast<cudaGraph_t>(piece)),
          "conditional graph: body");
  }

  cudaGraphExec_t instantiate() const {
    cudaGraphExec_t ready;
    check(cudaGraphInstantiate(&ready, graph_, 0),
          "conditional graph: instantiate (does its body hold more than kernels, and copies and fills on the device?)");
    return ready;
  }

 private:
  size_t count() const { return last_ == nullptr ? 0 : 1; }

  cudaError_t add_node(cudaGraphNode_t* node, cudaGraphNodeParams* what) {
#if CUDART_VERSION >= 13000
    return cudaGraphAddNode(node, graph_, &last_, nullptr, count(), what);
#else
    return cudaGraphAddNode(node, graph_, &last_, count(), what);
#endif
  }

  cudaGraph_t graph_ = nullptr;
  cudaGraphNode_t last_ = nullptr;
};

}  // namespace

void* join_pieces(const Pieces& pieces, const Context& context) {
  const std::string missing = missing_for_joins();
  if (!missing.empty()) throw std::runtime_error("conditional graph: " + missing);
  const DeviceGuard guard(context.device);
  Chain chain;
  chain.add(pieces.before, "conditional graph: the piece before");
  chain.add_if(pieces.need, pieces.body);
  chain.add(pieces.after, "conditional graph: the piece after");
  return chain.instantiate();
}

void launch_joined(void* joined, const Context& context) {
  const DeviceGuard guard(context.device);
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(joined), static_cast<cudaStream_t>(context.stream)),
        "conditional graph: launch");
}

// At the end of a process the driver may be gone already, and the graph with it.
void release_joined(void* joined) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(joined)); }

std::string missing_for_joins() {
  int version = 0;  // stays 0 without a driver
  if (cudaDriverGetVersion(&version) == cudaSuccess && version >= kOldestDriver) return "";
  if (version == 0) return "there is no NVIDIA driver";
  return "the driver is one for CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) +
         ", and 12.4 or later is needed";
}

}  // namespace hash3d::cuda

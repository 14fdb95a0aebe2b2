// CUDA graphs for a CPU: as much as csrc/cuda/conditional.cu asks for. Nodes that nothing orders run in the reverse of
// the order in which they were added, so that a forgotten dependency shows; what a conditional body may not hold is
// refused when the graph is instantiated.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#define CUDART_VERSION 13000

using cudaGraphConditionalHandle = unsigned long long;

namespace emulation {

struct Graph;
struct Node {
  std::function<void()> work;  // or
  std::shared_ptr<Graph> part;
  cudaGraphConditionalHandle condition = 0;  // of `part`; 0: it always runs
  bool for_bodies = true;                    // whether conditional bodies may hold it
  std::vector<const Node*> after;
};
struct Graph {
  std::vector<std::unique_ptr<Node>> nodes;
  std::map<cudaGraphConditionalHandle, unsigned> defaults;
  std::vector<Graph*> bodies;
  static inline int alive = 0;

  Graph() { ++alive; }
  ~Graph() { --alive; }

  std::shared_ptr<Graph> copy() const {
    auto twin = std::make_shared<Graph>();
    std::map<const Node*, const Node*> twins;
    for (const auto& node : nodes) {
      auto same = std::make_unique<Node>(*node);
      if (same->part != nullptr) same->part = same->part->copy();
      for (const Node*& other : same->after) other = twins.at(other);
      twins[node.get()] = same.get();
      twin->nodes.push_back(std::move(same));
    }
    twin->defaults = defaults;
    return twin;
  }

  bool allowed(bool in_body) const {
    return std::all_of(nodes.begin(), nodes.end(), [&](const auto& node) {
      if (in_body && !node->for_bodies) return false;
      return node->part == nullptr || node->part->allowed(in_body || node->condition != 0);
    });
  }

  void run() const {
    for (const auto& [handle, value] : defaults) *reinterpret_cast<unsigned*>(handle) = value;
    std::vector<const Node*> done;
    const auto is_done = [&](const Node* node) { return std::find(done.begin(), done.end(), node) != done.end(); };
    while (done.size() < nodes.size()) {
      const auto next = std::find_if(nodes.rbegin(), nodes.rend(), [&](const auto& node) {
        return !is_done(node.get()) && std::all_of(node->after.begin(), node->after.end(), is_done);
      });
      const Node& node = **next;
      if (node.work) node.work();
      if (node.part != nullptr && (node.condition == 0 || *reinterpret_cast<unsigned*>(node.condition) != 0)) {
        node.part->run();
      }
      done.push_back(&node);
    }
  }
};

inline Node* add(Graph* graph, const Node* const* after, size_t count) {
  graph->nodes.push_back(std::make_unique<Node>());
  graph->nodes.back()->after.assign(after, after + count);
  return graph->nodes.back().get();
}

}  // namespace emulation

using cudaGraph_t = emulation::Graph*;
using cudaGraphNode_t = const emulation::Node*;
using cudaGraphExec_t = emulation::Graph*;
struct cudaKernelNodeParams {
  void* func = nullptr;
  dim3 gridDim, blockDim;
  unsigned sharedMemBytes = 0;
  void** kernelParams = nullptr;
};
enum { cudaGraphCondAssignDefault = 1, cudaGraphCondTypeIf = 0, cudaGraphNodeTypeConditional = 13 };
struct cudaGraphNodeParams {
  int type;
  struct {
    cudaGraphConditionalHandle handle;
    int type;
    unsigned size;
    cudaGraph_t* phGraph_out;
  } conditional;
};

inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

inline cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) { return *graph = new emulation::Graph, cudaSuccess; }

inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

inline cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                              size_t count, cudaGraph_t child) {
  if (child == nullptr) return cudaErrorInvalidValue;
  emulation::Node* made = emulation::add(graph, after, count);
  made->part = child->copy();
  return *node = made, cudaSuccess;
}

// A word that lives as long as the process.
inline cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph,
                                                    unsigned value, unsigned flags) {
  static std::vector<std::unique_ptr<unsigned>> words;
  words.push_back(std::make_unique<unsigned>(77));
  *handle = reinterpret_cast<cudaGraphConditionalHandle>(words.back().get());
  if (flags == cudaGraphCondAssignDefault) graph->defaults[*handle] = value;
  return cudaSuccess;
}

inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  *reinterpret_cast<unsigned*>(handle) = value;
}

// The only kernel that is added by hand is the one that sets a condition.
inline cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                          size_t count, const cudaKernelNodeParams* kernel) {
  emulation::Node* made = emulation::add(graph, after, count);
  const auto function = reinterpret_cast<void (*)(cudaGraphConditionalHandle, const int32_t*)>(kernel->func);
  const auto handle = *static_cast<cudaGraphConditionalHandle*>(kernel->kernelParams[0]);
  const auto* need = *static_cast<const int32_t**>(kernel->kernelParams[1]);
  const dim3 blocks = kernel->gridDim, threads = kernel->blockDim;
  made->work = [=] { emulation::run(blocks, threads, [=] { function(handle, need); }); };
  return *node = made, cudaSuccess;
}

inline cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                    const void* edges, size_t count, cudaGraphNodeParams* what) {
  const bool known = what->type == cudaGraphNodeTypeConditional && what->conditional.type == cudaGraphCondTypeIf;
  if (!known || edges != nullptr || what->conditional.size != 1) return cudaErrorInvalidValue;
  emulation::Node* made = emulation::add(graph, after, count);
  made->condition = what->conditional.handle;
  made->part = std::make_shared<emulation::Graph>();
  graph->bodies.push_back(made->part.get());
  what->conditional.phGraph_out = &graph->bodies.back();
  return *node = made, cudaSuccess;
}

inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  if (!graph->allowed(false)) return cudaErrorInvalidValue;
  *ready = new emulation::Graph;
  emulation::add(*ready, nullptr, 0)->part = graph->copy();
  return cudaSuccess;
}

inline cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
  ready->run();
  return cudaSuccess;
}

inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  delete ready;
  return cudaSuccess;
}

// Pieces joined by a conditional node, on the emulation of CUDA graphs: what runs, how often, in which order; what is
// refused; that nothing is left behind.
//
//   engine_conditional    exit code 0, or 1 with a line that says what is wrong
#include <cstdio>
#include <stdexcept>
#include <string>

#include "cuda_runtime.h"
#include "hash3d/hash3d.h"

namespace {

using namespace hash3d;

std::string trace;  // a letter for every node that ran

// A captured piece of two nodes in a row.
struct Piece {
  cudaGraph_t graph = nullptr;

  explicit Piece(const char* letters, bool for_bodies = true) {
    cudaGraphCreate(&graph, 0);
    cudaGraphNode_t last = nullptr;
    for (const char* letter = letters; *letter != 0; ++letter) {
      emulation::Node* node = emulation::add(graph, &last, last == nullptr ? 0 : 1);
      node->work = [name = *letter] { trace += name; };
      node->for_bodies = for_bodies;
      last = node;
    }
  }
  ~Piece() { cudaGraphDestroy(graph); }
};

int fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  return 1;
}

template <typename Call>
bool throws(Call call) {
  try {
    call();
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

int check() {
  if (!missing_for_joins().empty()) return fail("missing: " + missing_for_joins());
  Context context;
  context.type = DeviceType::kCuda;
  int32_t need = 0;
  void* joined = nullptr;
  {
    Piece before("ab"), body("cd"), after("ef");
    emulation::add(before.graph, nullptr, 0)->work = [&need] { need = 1 - need; };  // decided within the launch
    joined = join_pieces({before.graph, body.graph, after.graph, &need}, context);
  }  // the pieces were copied
  if (!trace.empty()) return fail("joining ran something");
  for (const char* expected : {"abcdef", "abef", "abcdef"}) {
    trace.clear();
    launch_joined(joined, context);
    if (trace != expected) return fail("expected " + std::string(expected) + ", ran " + trace);
  }
  release_joined(joined);

  Piece before("a"), body("b", false), after("c");
  if (!throws([&] { join_pieces({before.graph, body.graph, after.graph, &need}, context); })) {
    return fail("a body with a node that it may not hold was taken");
  }
  if (!throws([&] { join_pieces({before.graph, after.graph, nullptr, &need}, context); })) {
    return fail("a piece that is none was taken");
  }
  return emulation::Graph::alive == 3 ? 0 : fail("graphs are left behind");
}

}  // namespace

int main() {
  const int result = check();
  if (result == 0 && emulation::Graph::alive != 0) return fail("graphs are left behind at the end");
  if (result == 0) std::printf("joined pieces run as they should\n");
  return result;
}

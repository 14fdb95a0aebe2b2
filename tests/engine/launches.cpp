// What the CUDA backend makes of a launch that fails, and of a current device that is not the table's, on the
// emulation.
//
//   engine_launches    exit code 0, or 1 with a line that says what is wrong
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "owner.h"

namespace {

using namespace hash3d;

int fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  return 1;
}

Context on_device(int device) {
  Context context;
  context.type = DeviceType::kCuda;
  context.device = device;
  return context;
}

// What a call throws; "" where it returns.
std::string thrown(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

// A table, and one call of each kind.
struct Calls {
  Config config = plain_config(4, 19, 3);
  Owner owner{config, on_device(0)};
  std::vector<float> keys = poses(2, 1), latents = numbers(6, 2), features = numbers(38, 3), weights, averages;
  std::vector<int64_t> serials, found;
  std::vector<uint8_t> hit, member;
  std::vector<int32_t> grid;
  std::vector<char> scratch;
  int32_t overflow = 0;

  Calls() : weights(6), averages(6), serials(6), found(18), hit(2), member(3, 1), grid(2), scratch(1 << 16) {}

  Context context(int device) {
    Context context = on_device(device);
    context.scratch = scratch.data();
    return context;
  }

  std::vector<std::pair<std::string, std::function<void()>>> all(int device) {
    const Table& table = owner.table;
    const Items items{2, keys.data(), latents.data(), features.data()};
    const Answers answers{features.data(), 19, hit.data(), grid.data(), serials.data(), weights.data()};
    return {
        {"clear", [=] { clear(table, context(device)); }},
        {"append", [=] { append(table, items, serials.data(), context(device)); }},
        {"query", [=] { query(table, items, answers, context(device)); }},
        {"lookup", [=] { lookup(table, keys.data(), 2, found.data(), context(device)); }},
        {"similarity", [=] { similarity(table, keys.data(), 2, averages.data(), context(device)); }},
        {"restore", [=] { restore(table, serials.data(), member.data(), 0, &overflow, context(device)); }},
    };
  }
};

int check_refusals(Calls& calls) {
  const std::vector<std::pair<cudaError_t, std::string>> refusals = {
      {cudaErrorInvalidValue, "refused"},
      {cudaErrorInsufficientDriver, "needs a driver for CUDA"},
      {cudaErrorNoKernelImageForDevice, "CUDAARCHS"},
  };
  for (const auto& [status, remedy] : refusals) {
    for (const auto& [name, call] : calls.all(3)) {
      emulation::refusal = status;
      const std::string said = thrown(call);
      emulation::refusal = cudaSuccess;
      if (said.rfind(name, 0) != 0 || said.find(remedy) == std::string::npos) {
        return fail(name + ": a refused launch says \"" + said + "\", not \"" + remedy + "\"");
      }
      if (emulation::device != 0) return fail(name + " leaves another device behind when it throws");
    }
  }
  return 0;
}

int check_devices(Calls& calls) {
  for (int device : {0, 2}) {
    for (const auto& [name, call] : calls.all(device)) {
      emulation::settings = 0;
      const std::string said = thrown(call);
      if (!said.empty()) return fail(name + ": " + said);
      if (emulation::device != 0) return fail(name + " leaves another device behind");
      if (emulation::settings != (device == 0 ? 0 : 2)) return fail(name + " sets devices without need, or none");
    }
  }
  return 0;
}

}  // namespace

int main() {
  Calls calls;
  const int result = check_refusals(calls) + check_devices(calls);
  if (result == 0) std::printf("failed launches are told, devices are put back\n");
  return result != 0;
}

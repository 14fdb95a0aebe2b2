// The bridge: `hash3d_cuda._C`. Pointers, sizes and streams in, calls out; the table's logic is in csrc, its checks
// in hash3d_cuda/table.py. Tensors come as integers (data_ptr), so no framework is needed to build or import this.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "hash3d/hash3d.h"
#include "watch.h"

namespace py = pybind11;
using hash3d::Config;
using hash3d::Context;
using hash3d::Table;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Config make_config(const std::vector<std::array<float, hash3d::kKeyDims>>& sizes, int queue_length, int64_t num_buckets,
                   int64_t capacity, int64_t feature_size, int64_t latent_size, int64_t channel_size, int feature_dtype,
                   int match, int weighting, float decay, float initial_similarity, float min_similarity,
                   float azimuth_period) {
  if (sizes.empty() || sizes.size() > hash3d::kMaxGrids) throw std::invalid_argument("grids: expected 1 to 16");
  Config config{};
  config.grids = static_cast<int>(sizes.size());
  config.queue_length = queue_length;
  config.num_buckets = num_buckets;
  config.capacity = capacity;
  config.feature_size = feature_size;
  config.latent_size = latent_size;
  config.channel_size = channel_size;
  config.feature_dtype = static_cast<hash3d::DType>(feature_dtype);
  config.match = static_cast<hash3d::Match>(match);
  config.weighting = static_cast<hash3d::Weighting>(weighting);
  config.decay = decay;
  config.initial_similarity = initial_similarity;
  config.min_similarity = min_similarity;
  config.azimuth_period = azimuth_period;
  for (int grid = 0; grid < config.grids; ++grid) {
    std::copy(sizes[grid].begin(), sizes[grid].end(), config.sizes[grid]);
  }
  return config;
}

Context make_context(int device, Address stream, Address scratch, int threads) {
  Context context;
  context.type = device < 0 ? hash3d::DeviceType::kCpu : hash3d::DeviceType::kCuda;
  context.device = std::max(device, 0);
  context.stream = pointer<void>(stream);
  context.scratch = pointer<void>(scratch);
  context.threads = threads;
  return context;
}

// The engine's view of a table's memory, bound to its configuration; the Python class keeps the memory alive.
struct Engine {
  Table table;
  int device;  // -1: CPU

  Engine(const Config& config, int device, Address chains, Address similarity, Address keys, Address cells,
         Address norms, Address joined, Address latents, Address features, Address scales, Address counters)
      : table{config,
              pointer<int64_t>(chains),
              pointer<float>(similarity),
              pointer<float>(keys),
              pointer<float>(cells),
              pointer<float>(norms),
              pointer<int32_t>(joined),
              pointer<float>(latents),
              pointer<void>(features),
              pointer<float>(scales),
              pointer<int64_t>(counters)},
        device(device) {}

  hash3d::DeviceType type() const { return device < 0 ? hash3d::DeviceType::kCpu : hash3d::DeviceType::kCuda; }
  Context context(Address stream, Address scratch = 0, int threads = 1) const {
    return make_context(device, stream, scratch, threads);
  }

  int64_t append_scratch() const { return hash3d::append_scratch(table.config, type()); }
  int64_t query_scratch(int64_t count) const { return hash3d::query_scratch(table.config, count, type()); }

  void clear(Address stream) const { hash3d::clear(table, context(stream)); }

  void append(int64_t count, Address keys, Address latents, Address features, Address skip, Address serials,
              Address stream, int threads, Address scratch) const {
    const hash3d::Items items{count, pointer<float>(keys), pointer<float>(latents), pointer<void>(features),
                              pointer<uint8_t>(skip)};
    hash3d::append(table, items, pointer<int64_t>(serials), context(stream, scratch, threads));
  }

  void query(int64_t count, Address keys, Address latents, Address features, int64_t feature_stride, Address hit,
             Address grid, Address serials, Address weights, Address stream, int threads, Address scratch) const {
    const hash3d::Items items{count, pointer<float>(keys), pointer<float>(latents), nullptr, nullptr};
    const hash3d::Answers answers{pointer<void>(features),   feature_stride,
                                  pointer<uint8_t>(hit),     pointer<int32_t>(grid),
                                  pointer<int64_t>(serials), pointer<float>(weights)};
    hash3d::query(table, items, answers, context(stream, scratch, threads));
  }

  void lookup(int64_t count, Address keys, Address serials, Address stream, int threads) const {
    hash3d::lookup(table, pointer<float>(keys), count, pointer<int64_t>(serials), context(stream, 0, threads));
  }

  void similarity(int64_t count, Address keys, Address averages, Address stream) const {
    hash3d::similarity(table, pointer<float>(keys), count, pointer<float>(averages), context(stream));
  }

  void restore(int64_t count, Address serials, Address member, Address overflow, Address stream) const {
    hash3d::restore(table, pointer<int64_t>(serials), pointer<uint8_t>(member), count, pointer<int32_t>(overflow),
                    context(stream));
  }
};

// Three captured graphs (cudaGraph_t) as one that is launched at once; the Python side keeps the memory they work on.
class JoinedGraph {
 public:
  JoinedGraph(int device, Address before, Address body, Address after, Address need)
      : device_(device),
        joined_(hash3d::join_pieces(
            {pointer<void>(before), pointer<void>(body), pointer<void>(after), pointer<int32_t>(need)},
            make_context(device, 0, 0, 1))) {}
  ~JoinedGraph() { hash3d::release_joined(joined_); }
  JoinedGraph(const JoinedGraph&) = delete;
  JoinedGraph& operator=(const JoinedGraph&) = delete;

  void launch(Address stream) const { hash3d::launch_joined(joined_, make_context(device_, stream, 0, 1)); }

 private:
  int device_;
  void* joined_;
};

py::dict build_info() {
  const hash3d::BuildInfo info = hash3d::build_info();
  py::dict result;
  result["compiler"] = info.compiler;
  result["simd"] = info.simd;
  result["simd_paths"] = info.simd_paths;
  result["cuda"] = info.cuda;
  result["cuda_architectures"] = info.cuda_architectures;
  result["cuda_devices"] = info.cuda_devices;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The engine of hash3d_cuda: a fixed-size hash table of U-Net features on raw memory.";
  m.attr("MAX_GRIDS") = hash3d::kMaxGrids;
  m.attr("COUNTERS") = static_cast<int>(hash3d::kCounters);
  const auto no_gil = py::call_guard<py::gil_scoped_release>();

  py::class_<Config>(m, "Config")
      .def(py::init(&make_config), py::kw_only(), py::arg("sizes"), py::arg("queue_length"), py::arg("num_buckets"),
           py::arg("capacity"), py::arg("feature_size"), py::arg("latent_size"), py::arg("channel_size"),
           py::arg("feature_dtype"), py::arg("match"), py::arg("weighting"), py::arg("decay"),
           py::arg("initial_similarity"), py::arg("min_similarity"), py::arg("azimuth_period"));

  py::class_<Engine>(m, "Engine")
      .def(py::init<const Config&, int, Address, Address, Address, Address, Address, Address, Address, Address, Address,
                    Address>(),
           py::arg("config"), py::arg("device"), py::arg("chains"), py::arg("similarity"), py::arg("keys"),
           py::arg("cells"), py::arg("norms"), py::arg("joined"), py::arg("latents"), py::arg("features"),
           py::arg("scales"), py::arg("counters"))
      .def("clear", &Engine::clear, no_gil)
      .def("append_scratch", &Engine::append_scratch)
      .def("query_scratch", &Engine::query_scratch)
      .def("append", &Engine::append, no_gil)
      .def("query", &Engine::query, no_gil)
      .def("lookup", &Engine::lookup, no_gil)
      .def("similarity", &Engine::similarity, no_gil)
      .def("restore", &Engine::restore, no_gil);

  py::class_<JoinedGraph>(m, "JoinedGraph")
      .def(py::init<int, Address, Address, Address, Address>(), py::arg("device"), py::arg("before"), py::arg("body"),
           py::arg("after"), py::arg("need"), no_gil)  // a U-Net's graph takes its time
      .def("launch", &JoinedGraph::launch, no_gil);

  m.def("missing_for_joins", &hash3d::missing_for_joins);
  m.def("build_info", &build_info);
  m.def("items_of", &hash3d_python::items_of);
  m.def("are_items_of", &hash3d_python::are_items_of);
  m.def("sizes_of", &hash3d_python::sizes_of);
  m.def("are_sizes_of", &hash3d_python::are_sizes_of);
  m.def("sum_attributes", &hash3d_python::sum_attributes);
  m.def("use_simd", &hash3d::use_simd);
  m.def("supports", [](const std::string& type) {
    if (type == "cpu") return hash3d::supports(hash3d::DeviceType::kCpu);
    return type == "cuda" && hash3d::supports(hash3d::DeviceType::kCuda);
  });
  m.def("to_float", [](int dtype, Address source, Address target, int64_t count) {
    hash3d::to_float(static_cast<hash3d::DType>(dtype), pointer<void>(source), pointer<float>(target), count);
  });
  m.def("from_float", [](int dtype, Address source, Address target, int64_t count) {
    hash3d::from_float(static_cast<hash3d::DType>(dtype), pointer<float>(source), pointer<void>(target), count);
  });
}

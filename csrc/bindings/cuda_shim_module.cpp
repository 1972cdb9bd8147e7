// The CUDA kernels on the emulator, for tests: the same functions as _native.cuda, on CPU tensors.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/bind_cuda.h"
#include "bindings/checked_pointer.h"
#include "cuda/shim/block.h"
#include "cuda/shim/examples.h"

namespace py = pybind11;

namespace cmf {
namespace {

void set_order(const std::string& order, uint64_t seed) {
  shim::Settings settings;
  settings.seed = seed;
  if (order == "forward") {
    settings.order = shim::Order::kForward;
  } else if (order == "reverse") {
    settings.order = shim::Order::kReverse;
  } else if (order == "random") {
    settings.order = shim::Order::kRandom;
  } else {
    throw py::value_error("order must be forward, reverse or random, got '" + order + "'");
  }
  shim::settings() = settings;
}

void run_example(const std::string& name, uintptr_t values, int count) {
  shim::run_example(name.c_str(), static_cast<float*>(checked_pointer("values", values, 4, true)),
                    count);
}

void run_mma(const std::string& name, uintptr_t a, uintptr_t b, uintptr_t c) {
  shim::run_mma(name.c_str(), static_cast<const uint32_t*>(checked_pointer("a", a, 4, true)),
                static_cast<const uint32_t*>(checked_pointer("b", b, 4, true)),
                static_cast<float*>(checked_pointer("c", c, 4, true)));
}

void run_load_matrices(bool transposed, uintptr_t rows, uintptr_t registers, unsigned apart) {
  if (apart > 1) throw py::value_error("apart must be 0 or 1");
  shim::run_load_matrices(
      transposed, static_cast<const uint32_t*>(checked_pointer("rows", rows, 4, true)),
      static_cast<uint32_t*>(checked_pointer("registers", registers, 4, true)), apart);
}

}  // namespace
}  // namespace cmf

PYBIND11_MODULE(_cuda_shim, module) {
  module.doc() = "crossmedia_fast's CUDA kernels on an emulator; for its tests alone.";
  module.def("set_order", &cmf::set_order, py::arg("order"), py::arg("seed") = 0,
             "In which order threads and blocks run: forward, reverse or random.");
  module.def("run_example", &cmf::run_example);
  module.def("run_mma", &cmf::run_mma);
  module.def("run_load_matrices", &cmf::run_load_matrices, py::arg("transposed"), py::arg("rows"),
             py::arg("registers"), py::arg("apart") = 1);
  module.def("take_bank_conflicts", &cmf::shim::take_bank_conflicts);
  cmf::bind_cuda(module);
}

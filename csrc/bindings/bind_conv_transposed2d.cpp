// Transposed convolutions, by the kernels of the convolutions whose adjoints they are.
#include <pybind11/pybind11.h>

#include <new>
#include <string>

#include "bindings/bind.h"

namespace py = pybind11;

namespace cmf {
namespace {

// Why the algorithm can't take the transposed convolution; "" where it can. `p`: of the convolution
// whose adjoint it is.
std::string refusal(const std::string& algorithm, const ConvActPool2dProblem& p) {
  const ConvKernels& k = conv_kernels(algorithm);
  if (!k.transposed) return "this build has no such kernel";
  if (p.pool.pool != Pool::kNone || p.pool.saved != Saved::kNothing) {
    return "takes a convolution without activation and pooling";
  }
  const char* reason = k.transposed_refusal ? k.transposed_refusal(p) : k.refusal(p, true);
  return reason ? reason : "";
}

const ConvKernels& accepting_kernels(const std::string& algorithm, const ConvActPool2dProblem& p) {
  const std::string reason = refusal(algorithm, p);
  if (!reason.empty()) {
    throw py::value_error("algorithm '" + algorithm + "' can't take this problem: " + reason);
  }
  return conv_kernels(algorithm);
}

// How many elements the algorithm's transformed weights take.
int64_t prepared_size(const std::string& algorithm, const ConvActPool2dProblem& p) {
  return accepting_kernels(algorithm, p).transposed_size(p);
}

void* checked_prepared(const ConvKernels& k, const ConvActPool2dProblem& p, uintptr_t prepared,
                       int64_t prepared_size, bool needed) {
  if (prepared != 0 && prepared_size != k.transposed_size(p)) {
    throw py::value_error("prepared must have " + std::to_string(k.transposed_size(p)) +
                          " elements, got " + std::to_string(prepared_size));
  }
  return checked_pointer("prepared", prepared, p.pool.itemsize, needed);
}

void prepare(const std::string& algorithm, const ConvActPool2dProblem& p, uintptr_t w,
             uintptr_t prepared, int64_t prepared_size, int threads) {
  check_threads(threads);
  const ConvKernels& k = accepting_kernels(algorithm, p);
  const void* w_data = checked_pointer("w", w, p.pool.itemsize, true);
  void* prepared_data = checked_prepared(k, p, prepared, prepared_size, true);
  bool success;
  {
    py::gil_scoped_release release;
    success = k.prepare_transposed(p, w_data, prepared_data, threads);
  }
  if (!success) throw std::bad_alloc();
}

void check_output(const ConvActPool2dProblem& p, const ActPool2dProblem& output) {
  if (output.batch != p.pool.batch || output.channels != p.in_channels ||
      output.height != p.height || output.width != p.width || output.dtype != p.pool.dtype ||
      output.channels_last != p.x_channels_last || output.pool != Pool::kNone) {
    throw py::value_error(
        "output must have the shape, the dtype and the format of the problem's x "
        "and no pooling");
  }
}

// Of a y that is some channels of a larger NHWC tensor.
void check_y_pixel(const std::string& algorithm, const ActPool2dProblem& output, int64_t y_pixel) {
  if (algorithm != "patches" || !output.channels_last) {
    throw py::value_error("y_pixel must be 0: algorithm '" + algorithm + "' writes dense tensors");
  }
  check_y_pixel_size(output, y_pixel);
}

void forward(const std::string& algorithm, const ConvActPool2dProblem& p,
             const ActPool2dProblem& output, uintptr_t x, uintptr_t w, uintptr_t prepared,
             int64_t prepared_size, uintptr_t bias, uintptr_t y, int threads, int64_t y_pixel) {
  check_threads(threads);
  const ConvKernels& k = accepting_kernels(algorithm, p);
  check_output(p, output);
  if (y_pixel != 0) check_y_pixel(algorithm, output, y_pixel);
  if (p.pool.batch == 0) throw py::value_error("batch must not be 0 here");
  const int size = p.pool.itemsize;
  ConvTransposed transposed = {};
  transposed.prepared = checked_prepared(k, p, prepared, prepared_size, false);
  transposed.bias = checked_pointer("bias", bias, size, false);
  transposed.output = &output;
  transposed.y_pixel = y_pixel;
  ConvBackwardTensors t = {};
  t.dy = checked_pointer("x", x, size, true);
  t.w = checked_pointer("w", w, size, true);
  t.dx = checked_pointer("y", y, size, true);
  t.transposed = &transposed;
  bool success;
  {
    py::gil_scoped_release release;
    success = k.transposed(p, t, threads);
  }
  if (!success) throw std::bad_alloc();
}

}  // namespace

void bind_conv_transposed2d(py::module_& module) {
  module.def("conv_transposed2d_refusal", &refusal, py::arg("algorithm"), py::arg("problem"));
  module.def("conv_transposed2d_prepared_size", &prepared_size, py::arg("algorithm"),
             py::arg("problem"));
  module.def("conv_transposed2d_prepare", &prepare, py::arg("algorithm"), py::arg("problem"),
             py::arg("w"), py::arg("prepared"), py::arg("prepared_size"), py::arg("threads"));
  module.def("conv_transposed2d_forward", &forward, py::arg("algorithm"), py::arg("problem"),
             py::arg("output"), py::arg("x"), py::arg("w"), py::arg("prepared"),
             py::arg("prepared_size"), py::arg("bias"), py::arg("y"), py::arg("threads"),
             py::arg("y_pixel") = 0);
}

}  // namespace cmf

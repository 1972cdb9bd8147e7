// conv2d_small and the act_pool2d that follows it: checks every pointer against its problem, then
// calls both kernels.
//
// The GIL is kept: a call takes microseconds, less than giving it up and taking it back may cost.
#include <pybind11/pybind11.h>
#include <stdlib.h>

#include <memory>
#include <new>
#include <string>

#include "bindings/act_pool2d_call.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace cmf {
namespace {

Conv2dProblem make_problem(int64_t batch, int64_t in_channels, int64_t height, int64_t width,
                           int64_t out_channels, int64_t kernel_height, int64_t kernel_width,
                           int64_t pad_height, int64_t pad_width, const std::string& dtype) {
  Conv2dProblem p = {};
  p.batch = batch;
  p.in_channels = in_channels;
  p.height = height;
  p.width = width;
  p.out_channels = out_channels;
  p.kernel_height = kernel_height;
  p.kernel_width = kernel_width;
  p.pad_height = pad_height;
  p.pad_width = pad_width;
  p.dtype = dtype_from_name(dtype.c_str());
  complete_conv2d_problem(&p);
  return p;
}

// The convolution's output between two kernels: one buffer a thread, kept for the next call.
void* scratch(size_t bytes) {
  thread_local std::unique_ptr<void, decltype(&free)> buffer(nullptr, &free);
  thread_local size_t size = 0;
  if (size < bytes) {
    buffer.reset();
    size = 0;
    const size_t rounded = (bytes + 63) / 64 * 64;
    buffer.reset(aligned_alloc(64, rounded));
    if (!buffer) throw std::bad_alloc();
    size = rounded;
  }
  return buffer.get();
}

size_t output_bytes(const Conv2dProblem& p) {
  return static_cast<size_t>(p.batch * p.out_channels * p.out_height * p.out_width) * p.itemsize;
}

// Throws where `after` is not what follows the convolution `p`.
void check_follows(const Conv2dProblem& p, const ActPool2dProblem& after) {
  if (after.batch != p.batch || after.channels != p.out_channels || after.height != p.out_height ||
      after.width != p.out_width || after.dtype != p.dtype || after.channels_last) {
    throw py::value_error("the pooling's problem must be that of the convolution's output");
  }
}

void forward(const Conv2dProblem& p, const ActPool2dProblem& after, uintptr_t x, uintptr_t w,
             uintptr_t bias, uintptr_t z, uintptr_t y, uintptr_t index, uintptr_t preactivation,
             int threads) {
  check_follows(p, after);
  const bool some = p.batch > 0;
  const void* x_data = checked_pointer("x", x, p.itemsize, some);
  const void* w_data = checked_pointer("w", w, p.itemsize, some);
  void* z_data = checked_pointer("z", z, p.itemsize, false);
  const ActPool2dForward call(after, bias, y, index, preactivation, threads);
  if (!some) return;
  if (z_data == nullptr) z_data = scratch(output_bytes(p));
  if (!kernels().conv2d_small_forward(p, x_data, w_data, z_data)) throw std::bad_alloc();
  call.run(z_data);
}

void backward(const Conv2dProblem& p, const ActPool2dProblem& after, uintptr_t dy, uintptr_t saved,
              uintptr_t bias, uintptr_t index, uintptr_t x, uintptr_t w, uintptr_t dx, uintptr_t dw,
              uintptr_t dbias, int threads) {
  check_follows(p, after);
  const bool some = p.batch > 0;
  const void* x_data = checked_pointer("x", x, p.itemsize, some && dw != 0);
  const void* w_data = checked_pointer("w", w, p.itemsize, some && dx != 0);
  void* dx_data = checked_pointer("dx", dx, p.itemsize, false);
  void* dw_data = checked_pointer("dw", dw, p.itemsize, false);
  const ActPool2dBackward call(after, dy, saved, bias, index, dbias, threads);
  const bool dense = dx_data != nullptr || dw_data != nullptr;
  void* dz_data = some && dense ? scratch(output_bytes(p)) : nullptr;
  call.run(dz_data);
  if (!dense) return;
  if (!kernels().conv2d_small_backward(p, dz_data, x_data, w_data, dx_data, dw_data)) {
    throw std::bad_alloc();
  }
}

}  // namespace

void bind_conv2d_small(py::module_& module) {
  py::class_<Conv2dProblem>(module, "Conv2dProblem", "Shapes of one small convolution.")
      .def(py::init(&make_problem), py::kw_only(), py::arg("batch"), py::arg("in_channels"),
           py::arg("height"), py::arg("width"), py::arg("out_channels"), py::arg("kernel_height"),
           py::arg("kernel_width"), py::arg("pad_height"), py::arg("pad_width"), py::arg("dtype"))
      .def_readonly("out_height", &Conv2dProblem::out_height)
      .def_readonly("out_width", &Conv2dProblem::out_width);
  module.def("conv2d_small_forward", &forward);
  module.def("conv2d_small_backward", &backward);
}

}  // namespace cmf

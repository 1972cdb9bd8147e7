// conv2d_small: checks every pointer against its problem, then calls the kernel.
//
// The GIL is kept: a call takes microseconds, less than giving it up and taking it back may cost.
#include <pybind11/pybind11.h>

#include <new>
#include <string>

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

void forward(const Conv2dProblem& p, uintptr_t x, uintptr_t w, uintptr_t z) {
  const bool some = p.batch > 0;
  const void* x_data = checked_pointer("x", x, p.itemsize, some);
  const void* w_data = checked_pointer("w", w, p.itemsize, some);
  void* z_data = checked_pointer("z", z, p.itemsize, some);
  if (!kernels().conv2d_small_forward(p, x_data, w_data, z_data)) throw std::bad_alloc();
}

void backward(const Conv2dProblem& p, uintptr_t dz, uintptr_t x, uintptr_t w, uintptr_t dx,
              uintptr_t dw) {
  const bool some = p.batch > 0;
  const void* dz_data = checked_pointer("dz", dz, p.itemsize, some);
  const void* x_data = checked_pointer("x", x, p.itemsize, some && dw != 0);
  const void* w_data = checked_pointer("w", w, p.itemsize, some && dx != 0);
  void* dx_data = checked_pointer("dx", dx, p.itemsize, false);
  void* dw_data = checked_pointer("dw", dw, p.itemsize, false);
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

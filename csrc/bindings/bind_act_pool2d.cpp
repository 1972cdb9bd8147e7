// act_pool2d: checks every pointer against its problem, then calls the kernel without the GIL.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/act_pool2d_call.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace cmf {
namespace {

int32_t known(int32_t code, const char* field, const std::string& name) {
  if (code < 0) throw py::value_error(std::string("unknown ") + field + " '" + name + "'");
  return code;
}

ActPool2dProblem make_problem(int64_t batch, int64_t channels, int64_t height, int64_t width,
                              int64_t out_height, int64_t out_width, int64_t pool_height,
                              int64_t pool_width, int64_t pool_stride_height,
                              int64_t pool_stride_width, int64_t pool_pad_height,
                              int64_t pool_pad_width, bool count_include_pad,
                              const std::string& pool, const std::string& activation,
                              double activation_param, const std::string& dtype,
                              bool channels_last) {
  ActPool2dProblem p = {};
  p.batch = batch;
  p.channels = channels;
  p.height = height;
  p.width = width;
  p.out_height = out_height;
  p.out_width = out_width;
  p.pool_height = pool_height;
  p.pool_width = pool_width;
  p.pool_stride_height = pool_stride_height;
  p.pool_stride_width = pool_stride_width;
  p.pool_pad_height = pool_pad_height;
  p.pool_pad_width = pool_pad_width;
  p.count_include_pad = count_include_pad;
  p.pool = static_cast<Pool>(known(pool_from_name(pool.c_str()), "pool", pool));
  p.activation = known(activation_from_name(activation.c_str()), "activation", activation);
  p.activation_param = activation_param;
  p.dtype = known(dtype_from_name(dtype.c_str()), "dtype", dtype);
  p.channels_last = channels_last;
  complete_act_pool2d_problem(&p);
  return p;
}

void forward(const ActPool2dProblem& p, uintptr_t x, uintptr_t bias, uintptr_t y, uintptr_t index,
             uintptr_t preactivation, int threads) {
  if (x == y && x != 0 && p.pool != Pool::kNone) {
    throw py::value_error("y must not be x where there is a pooling");
  }
  const void* x_data = checked_pointer("x", x, p.itemsize, p.batch > 0);
  const ActPool2dForward call(p, bias, y, index, preactivation, threads);
  if (p.batch == 0) return;
  py::gil_scoped_release release;
  call.run(x_data);
}

void backward(const ActPool2dProblem& p, uintptr_t dy, uintptr_t saved, uintptr_t bias,
              uintptr_t index, uintptr_t dx, uintptr_t dbias, int threads) {
  void* dx_data = checked_pointer("dx", dx, p.itemsize, false);
  const ActPool2dBackward call(p, dy, saved, bias, index, dbias, threads);
  py::gil_scoped_release release;
  call.run(dx_data);
}

}  // namespace

void bind_act_pool2d(py::module_& module) {
  py::class_<ActPool2dProblem>(module, "ActPool2dProblem",
                               "Shapes, pooling and activation of one act_pool2d call.")
      .def(py::init(&make_problem), py::kw_only(), py::arg("batch"), py::arg("channels"),
           py::arg("height"), py::arg("width"), py::arg("out_height"), py::arg("out_width"),
           py::arg("pool_height"), py::arg("pool_width"), py::arg("pool_stride_height"),
           py::arg("pool_stride_width"), py::arg("pool_pad_height"), py::arg("pool_pad_width"),
           py::arg("count_include_pad"), py::arg("pool"), py::arg("activation"),
           py::arg("activation_param"), py::arg("dtype"), py::arg("channels_last"))
      .def_property_readonly("saved", [](const ActPool2dProblem& p) { return saved_name(p.saved); })
      .def_readonly("index_itemsize", &ActPool2dProblem::index_itemsize)
      .def_readonly("monotone", &ActPool2dProblem::monotone);
  module.def("act_pool2d_forward", &forward);
  module.def("act_pool2d_backward", &backward);
}

}  // namespace cmf

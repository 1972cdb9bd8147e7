// batch_norm_act: checks every pointer against its problem, then calls the kernel without the GIL.
#include <pybind11/pybind11.h>

#include <new>
#include <string>

#include "bindings/bind.h"
#include "common/act_pool2d_problem.h"
#include "common/batch_norm_act_problem.h"

namespace py = pybind11;

namespace cmf {
namespace {

constexpr int kFloat = 4;  // bytes
// Elements under which letting other Python threads run costs more than it gives.
constexpr int64_t kWorthUnlocking = 8192;

BatchNormActProblem make_problem(int64_t batch, int64_t channels, int64_t plane, double eps,
                                 const std::string& activation, double activation_param,
                                 bool channels_last) {
  BatchNormActProblem p = {};
  p.batch = batch;
  p.channels = channels;
  p.plane = plane;
  p.eps = eps;
  p.activation = activation_from_name(activation.c_str());
  if (p.activation < 0) throw py::value_error("unknown activation '" + activation + "'");
  p.activation_param = activation_param;
  p.channels_last = channels_last;
  complete_batch_norm_act_problem(&p);
  return p;
}

float* floats(const char* name, uintptr_t address, bool needed) {
  return static_cast<float*>(checked_pointer(name, address, kFloat, needed));
}

template <class Kernel>
void run(const BatchNormActProblem& p, const Kernel& kernel) {
  bool success;
  if (p.batch * p.channels * p.plane < kWorthUnlocking) {
    success = kernel();
  } else {
    const py::gil_scoped_release release;
    success = kernel();
  }
  if (!success) throw std::bad_alloc();
}

void forward(const BatchNormActProblem& p, uintptr_t x, uintptr_t weight, uintptr_t bias,
             uintptr_t running_mean, uintptr_t running_var, double momentum, uintptr_t y,
             uintptr_t statistics, int threads) {
  check_threads(threads);
  BatchNormActForward call = {};
  call.x = floats("x", x, true);
  call.weight = floats("weight", weight, false);
  call.bias = floats("bias", bias, false);
  call.running_mean = floats("running_mean", running_mean, running_var != 0);
  call.running_var = floats("running_var", running_var, running_mean != 0);
  call.momentum = momentum;
  call.y = floats("y", y, true);
  call.statistics = floats("statistics", statistics, true);
  run(p, [&] { return kernels().batch_norm_act_forward(p, call, threads); });
}

void backward(const BatchNormActProblem& p, uintptr_t x, uintptr_t statistics, uintptr_t weight,
              uintptr_t bias, uintptr_t dy, uintptr_t dx, uintptr_t dweight, uintptr_t dbias,
              int threads) {
  check_threads(threads);
  BatchNormActBackward call = {};
  call.x = floats("x", x, true);
  call.statistics = floats("statistics", statistics, true);
  call.weight = floats("weight", weight, false);
  call.bias = floats("bias", bias, false);
  call.dy = floats("dy", dy, true);
  call.dx = floats("dx", dx, false);
  call.dweight = floats("dweight", dweight, false);
  call.dbias = floats("dbias", dbias, false);
  run(p, [&] { return kernels().batch_norm_act_backward(p, call, threads); });
}

}  // namespace

void bind_batch_norm_act(py::module_& module) {
  py::class_<BatchNormActProblem>(module, "BatchNormActProblem",
                                  "Sizes and activation of one batch_norm_act call.")
      .def(py::init(&make_problem), py::kw_only(), py::arg("batch"), py::arg("channels"),
           py::arg("plane"), py::arg("eps"), py::arg("activation"), py::arg("activation_param"),
           py::arg("channels_last"));
  module.def("batch_norm_act_forward", &forward);
  module.def("batch_norm_act_backward", &backward);
}

}  // namespace cmf

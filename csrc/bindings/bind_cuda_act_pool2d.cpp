// The epilogue on the device: checks every pointer against its problem, then launches on the given
// stream. What fails is reported with the problem that it failed for.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings/bind_cuda.h"
#include "bindings/checked_pointer.h"
#include "cuda/act_pool2d.h"
#include "cuda/device.h"

namespace py = pybind11;

namespace cmf {
namespace {

std::string describe(const ActPool2dProblem& p) {
  const auto text = [](int64_t value) { return std::to_string(value); };
  return "x [" + text(p.batch) + ", " + text(p.channels) + ", " + text(p.height) + ", " +
         text(p.width) + "], pooled to " + text(p.out_height) + "×" + text(p.out_width) +
         (p.channels_last ? ", channels_last" : ", contiguous") + ", " + text(p.itemsize) +
         " bytes an element";
}

template <class F>
void launch(const ActPool2dProblem& p, int device, F call) {
  const py::gil_scoped_release release;
  try {
    const CMF_ISA::DeviceGuard guard(device);
    call();
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(error.what()) + "; " + describe(p));
  }
}

void forward(const ActPool2dProblem& p, uintptr_t x, uintptr_t bias, uintptr_t y, uintptr_t index,
             uintptr_t preactivation, int device, uintptr_t stream) {
  if (x == y && x != 0 && p.pool != Pool::kNone) {
    throw py::value_error("y must not be x where there is a pooling");
  }
  if (index != 0 && p.index_itemsize == 0) {
    throw py::value_error("index must be 0: this problem has none");
  }
  if (preactivation != 0 && (p.saved != Saved::kPreactivation || index == 0)) {
    throw py::value_error("preactivation must be 0 for this problem, or come with an index");
  }
  const bool some = p.batch > 0;
  const void* x_data = checked_pointer("x", x, p.itemsize, some);
  const void* bias_data = checked_pointer("bias", bias, p.itemsize, false);
  void* y_data = checked_pointer("y", y, p.itemsize, some);
  void* index_data =
      checked_pointer("index", index, p.index_itemsize ? p.index_itemsize : 1, false);
  void* kept = checked_pointer("preactivation", preactivation, p.itemsize, false);
  launch(p, device, [&] {
    CMF_ISA::act_pool2d_forward(p, x_data, bias_data, y_data, index_data, kept,
                                reinterpret_cast<void*>(stream));
  });
}

void backward(const ActPool2dProblem& p, uintptr_t dy, uintptr_t saved, uintptr_t bias,
              uintptr_t index, uintptr_t dx, uintptr_t dbias, uintptr_t scratch, int device,
              uintptr_t stream) {
  const bool some = p.batch > 0;
  const bool needs_saved = p.saved != Saved::kNothing && p.saved != Saved::kMask;
  const bool needs_index = p.index_itemsize != 0;
  const void* dy_data = checked_pointer("dy", dy, p.itemsize, some);
  const void* saved_data = checked_pointer("saved", saved, p.itemsize, some && needs_saved);
  const void* bias_data = checked_pointer("bias", bias, p.itemsize, false);
  const void* index_data =
      checked_pointer("index", index, needs_index ? p.index_itemsize : 1, some && needs_index);
  void* dx_data = checked_pointer("dx", dx, p.itemsize, false);
  void* dbias_data = checked_pointer("dbias", dbias, p.itemsize, false);
  void* scratch_data = checked_pointer("scratch", scratch, 8, some && dbias != 0);
  launch(p, device, [&] {
    CMF_ISA::act_pool2d_backward(p, dy_data, saved_data, bias_data, index_data, dx_data, dbias_data,
                                 scratch_data, reinterpret_cast<void*>(stream));
  });
}

}  // namespace

void bind_cuda_act_pool2d(py::module_& module) {
  module.def("check_act_pool2d", &CMF_ISA::check_act_pool2d,
             "ValueError where the kernels do not take a problem.");
  module.def("act_pool2d_forward", &forward,
             "(problem, x, bias, y, index, preactivation, device, stream). Addresses; 0 = none.");
  module.def("act_pool2d_backward_scratch", &CMF_ISA::act_pool2d_backward_scratch,
             "Bytes of scratch memory that the bias gradient takes.");
  module.def("act_pool2d_backward", &backward,
             "(problem, dy, saved, bias, index, dx, dbias, scratch, device, stream). Addresses.");
  module.def("set_always_wide", &CMF_ISA::set_always_wide,
             "For tests: divide in 64 bits whatever the sizes are.");
}

}  // namespace cmf

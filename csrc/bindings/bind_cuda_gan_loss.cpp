// The GAN losses on the device. What fails is reported with the problem that it failed for.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings/bind_cuda.h"
#include "bindings/checked_pointer.h"
#include "bindings/gan_loss_call.h"
#include "cuda/device.h"
#include "cuda/gan_loss.h"

namespace py = pybind11;

namespace cmf {
namespace {

template <class F>
void launch(const GanLoss& loss, int device, F call) {
  const py::gil_scoped_release release;
  try {
    const CMF_ISA::DeviceGuard guard(device);
    call();
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(error.what()) + "; a loss of " +
                             std::to_string(loss.elements) + " elements in " +
                             std::to_string(loss.terms.size()) + " terms");
  }
}

bool is_empty(const GanLoss& loss) {
  return loss.problem.reduction == GanLossReduction::kNone && !loss.elements;
}

void forward(const GanLoss& loss, uintptr_t value, const py::tuple& operands,
             const py::tuple& gradients, uintptr_t scratch, int device, uintptr_t stream) {
  const GanLossAddresses operand("operands", operands, loss, false);
  const GanLossAddresses gradient("gradients", gradients, loss, true);
  check_address("loss", value, loss.loss_itemsize(), is_empty(loss));
  check_address("scratch", scratch, 8, CMF_ISA::gan_loss_scratch(loss.problem) == 0);
  launch(loss, device, [&] {
    CMF_ISA::gan_loss_forward(loss.problem, operand.get(), gradient.get(),
                              reinterpret_cast<void*>(value), reinterpret_cast<void*>(scratch),
                              reinterpret_cast<void*>(stream));
  });
}

void backward(const GanLoss& loss, uintptr_t grad, const py::tuple& operands,
              const py::tuple& gradients, bool skip_one, int device, uintptr_t stream) {
  const GanLossAddresses operand("operands", operands, loss, false);
  const GanLossAddresses gradient("gradients", gradients, loss, true);
  check_address("grad", grad, loss.loss_itemsize(), is_empty(loss));
  launch(loss, device, [&] {
    CMF_ISA::gan_loss_backward(loss.problem, reinterpret_cast<const void*>(grad), operand.get(),
                               gradient.get(), skip_one, reinterpret_cast<void*>(stream));
  });
}

}  // namespace

void bind_cuda_gan_loss(py::module_& module) {
  module.def(
      "gan_loss_scratch",
      [](const GanLoss& loss) { return CMF_ISA::gan_loss_scratch(loss.problem); },
      "Bytes of scratch memory that gan_loss_forward takes.");
  module.def("gan_loss_forward", &forward,
             "(problem, loss, operands, gradients, scratch, device, stream). Addresses; 0 = no "
             "gradient wanted.");
  module.def("gan_loss_backward", &backward,
             "(problem, grad, operands, gradients, skip_one, device, stream). Addresses; skip_one: "
             "the gradients for an incoming gradient of 1 are there already.");
}

}  // namespace cmf

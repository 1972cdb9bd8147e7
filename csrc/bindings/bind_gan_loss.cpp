// The GAN losses for Python: names to numbers, and no address reaches a kernel unchecked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bind.h"
#include "bindings/gan_loss_call.h"

namespace py = pybind11;

namespace cmf {
namespace {

constexpr int kMostThreads = 1 << 16;
// Elements under which letting other Python threads run costs more than it gives.
constexpr int64_t kWorthUnlocking = 4096;

void check_threads(int threads) {
  if (threads < 1 || threads > kMostThreads) {
    throw py::value_error("threads must be between 1 and 65536, got " + std::to_string(threads));
  }
}

bool forward(const GanLoss& loss, uintptr_t value, const py::tuple& operands,
             const py::tuple& gradients, int threads) {
  const GanLossAddresses operand("operands", operands, loss, false);
  const GanLossAddresses gradient("gradients", gradients, loss, true);
  const GanLossProblem& problem = loss.problem;
  const bool unreduced = problem.reduction == GanLossReduction::kNone;
  check_address("loss", value, loss.loss_itemsize(), unreduced && !loss.elements);
  check_threads(threads);
  const auto call = [&] {
    return kernels().gan_loss_forward(problem, operand.get(), gradient.get(),
                                      reinterpret_cast<void*>(value), threads);
  };
  if (loss.elements < kWorthUnlocking) return call() & kGanLossBadProbability;
  const py::gil_scoped_release unlocked;
  return call() & kGanLossBadProbability;
}

void backward(const GanLoss& loss, uintptr_t grad, const py::tuple& operands,
              const py::tuple& gradients, int threads) {
  const GanLossAddresses operand("operands", operands, loss, false);
  const GanLossAddresses gradient("gradients", gradients, loss, true);
  const GanLossProblem& problem = loss.problem;
  const bool unreduced = problem.reduction == GanLossReduction::kNone;
  check_address("grad", grad, loss.loss_itemsize(), unreduced && !loss.elements);
  check_threads(threads);
  const auto call = [&] {
    kernels().gan_loss_backward(problem, reinterpret_cast<const void*>(grad), operand.get(),
                                gradient.get(), threads);
  };
  if (loss.elements < kWorthUnlocking) return call();
  const py::gil_scoped_release unlocked;
  call();
}

}  // namespace

void bind_gan_loss(py::module_& module) {
  py::class_<GanLoss>(module, "GanLossProblem",
                      "A weighted sum of reduced elementwise functions; see gan_loss_problem.h.")
      .def(py::init<const std::string&, const std::string&, const std::vector<int64_t>&,
                    const std::vector<double>&, const std::vector<double>&, const std::string&,
                    const std::string&>(),
           py::kw_only(), py::arg("function"), py::arg("reduction"), py::arg("counts"),
           py::arg("parameters"), py::arg("scales"), py::arg("dtype"), py::arg("loss_dtype"));
  module.def("gan_loss_forward", &forward,
             "(problem, loss, operands, gradients, threads) -> whether a probability lies outside "
             "[0, 1]. Addresses; 0 = no gradient wanted.");
  module.def("gan_loss_backward", &backward,
             "(problem, grad, operands, gradients, threads). Addresses; 0 = no gradient wanted.");
}

}  // namespace cmf

// The GAN losses for Python: names to numbers, and no address reaches a kernel unchecked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bind.h"
#include "common/gan_loss_problem.h"

namespace py = pybind11;

namespace cmf {
namespace {

constexpr const char* kFunctionNames[kGanLossFunctions] = {
    "log_loss_logits",
    "log_loss_probabilities",
    "least_squares",
    "hinge",
    "linear",
    "relativistic",
    "log_loss_logits_target",
    "log_loss_probabilities_target",
    "log_loss_logits_target_weight",
    "log_loss_probabilities_target_weight",
};
constexpr int kOperands[kGanLossFunctions] = {1, 1, 1, 1, 1, 2, 2, 2, 3, 3};
constexpr const char* kReductionNames[] = {"none", "mean", "sum"};
constexpr const char* kDTypeNames[] = {"float32", "float64", "float16", "bfloat16"};
constexpr int kItemSizes[] = {4, 8, 2, 2};
constexpr int kMostThreads = 1 << 16;
constexpr int64_t kMostElements = int64_t{1} << 48;
// Elements under which letting other Python threads run costs more than it gives.
constexpr int64_t kWorthUnlocking = 4096;

template <int N>
int32_t index_of(const char* argument, const std::string& name, const char* const (&names)[N]) {
  for (int index = 0; index < N; ++index) {
    if (name == names[index]) return index;
  }
  throw py::value_error(std::string(argument) + " must be one of the known names, got '" + name +
                        "'");
}

// The problem with the terms that it points to.
class GanLoss {
 public:
  GanLoss(const std::string& function, const std::string& reduction,
          const std::vector<int64_t>& counts, const std::vector<double>& parameters,
          const std::vector<double>& scales, const std::string& dtype,
          const std::string& loss_dtype) {
    const int32_t index = index_of("function", function, kFunctionNames);
    problem.function = static_cast<GanLossFunction>(index);
    problem.operands = kOperands[index];
    problem.reduction =
        static_cast<GanLossReduction>(index_of("reduction", reduction, kReductionNames));
    problem.dtype = index_of("dtype", dtype, kDTypeNames);
    problem.loss_dtype = index_of("loss_dtype", loss_dtype, kDTypeNames);
    const bool half = kItemSizes[problem.dtype] == 2;
    if (problem.loss_dtype != problem.dtype && !(half && loss_dtype == "float32")) {
      throw py::value_error("loss_dtype must be dtype, or float32 over a half type, got " +
                            loss_dtype + " over " + dtype);
    }
    const size_t size = counts.size();
    if (size < 1 || size > 65536 || parameters.size() != size || scales.size() != size) {
      throw py::value_error("counts, parameters and scales must have one value a term, got " +
                            std::to_string(size) + ", " + std::to_string(parameters.size()) +
                            " and " + std::to_string(scales.size()));
    }
    for (size_t term = 0; term < size; ++term) {
      if (counts[term] < 0 || counts[term] > kMostElements) {
        throw py::value_error("counts must be between 0 and 2**48, got " +
                              std::to_string(counts[term]));
      }
      if (problem.reduction == GanLossReduction::kNone && counts[term] != counts[0]) {
        throw py::value_error("counts must be equal with reduction none");
      }
      terms.push_back({counts[term], parameters[term], scales[term]});
      elements += counts[term];
    }
    problem.term_count = static_cast<int32_t>(size);
    problem.terms = terms.data();
  }
  GanLoss(const GanLoss&) = delete;
  GanLoss& operator=(const GanLoss&) = delete;

  GanLossProblem problem;
  std::vector<GanLossTerm> terms;
  int64_t elements = 0;
};

void check_address(const char* argument, uintptr_t address, int item_size, bool may_be_null) {
  if (address % item_size) {
    throw py::value_error(std::string(argument) + " is not aligned to its dtype");
  }
  if (!address && !may_be_null) {
    throw py::value_error(std::string(argument) + " must not be null");
  }
}

// The addresses of operands or gradients, term by term.
class Addresses {
 public:
  Addresses(const char* argument, const py::tuple& given, const GanLoss& loss, bool may_be_null) {
    const GanLossProblem& problem = loss.problem;
    const size_t size = static_cast<size_t>(problem.term_count) * problem.operands;
    if (given.size() != size) {
      throw py::value_error(std::string(argument) + " must hold " + std::to_string(size) +
                            " addresses, got " + std::to_string(given.size()));
    }
    values_ = size <= kInline ? inline_ : (many_.resize(size), many_.data());
    for (size_t index = 0; index < size; ++index) {
      const uintptr_t address = PyLong_AsSize_t(PyTuple_GET_ITEM(given.ptr(), index));
      if (address == static_cast<size_t>(-1) && PyErr_Occurred()) throw py::error_already_set();
      const bool empty = loss.terms[index / problem.operands].count == 0;
      check_address(argument, address, kItemSizes[problem.dtype], may_be_null || empty);
      values_[index] = reinterpret_cast<void*>(address);
    }
  }
  Addresses(const Addresses&) = delete;
  Addresses& operator=(const Addresses&) = delete;

  void* const* get() const { return values_; }

 private:
  static constexpr size_t kInline = 8;
  void* inline_[kInline];
  std::vector<void*> many_;
  void** values_;
};

void check_threads(int threads) {
  if (threads < 1 || threads > kMostThreads) {
    throw py::value_error("threads must be between 1 and 65536, got " + std::to_string(threads));
  }
}

bool forward(const GanLoss& loss, uintptr_t value, const py::tuple& operands,
             const py::tuple& gradients, int threads) {
  const Addresses operand("operands", operands, loss, false);
  const Addresses gradient("gradients", gradients, loss, true);
  const GanLossProblem& problem = loss.problem;
  const bool unreduced = problem.reduction == GanLossReduction::kNone;
  check_address("loss", value, kItemSizes[problem.loss_dtype], unreduced && !loss.elements);
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
  const Addresses operand("operands", operands, loss, false);
  const Addresses gradient("gradients", gradients, loss, true);
  const GanLossProblem& problem = loss.problem;
  const bool unreduced = problem.reduction == GanLossReduction::kNone;
  check_address("grad", grad, kItemSizes[problem.loss_dtype], unreduced && !loss.elements);
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

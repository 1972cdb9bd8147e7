#include "bindings/gan_loss_call.h"

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
constexpr int64_t kMostElements = int64_t{1} << 48;

template <int N>
int32_t index_of(const char* argument, const std::string& name, const char* const (&names)[N]) {
  for (int index = 0; index < N; ++index) {
    if (name == names[index]) return index;
  }
  throw py::value_error(std::string(argument) + " must be one of the known names, got '" + name +
                        "'");
}

}  // namespace

GanLoss::GanLoss(const std::string& function, const std::string& reduction,
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

int GanLoss::itemsize() const { return kItemSizes[problem.dtype]; }
int GanLoss::loss_itemsize() const { return kItemSizes[problem.loss_dtype]; }

void check_address(const char* argument, uintptr_t address, int item_size, bool may_be_null) {
  if (address % item_size) {
    throw py::value_error(std::string(argument) + " is not aligned to its dtype");
  }
  if (!address && !may_be_null) {
    throw py::value_error(std::string(argument) + " must not be null");
  }
}

GanLossAddresses::GanLossAddresses(const char* argument, const py::tuple& given,
                                   const GanLoss& loss, bool may_be_null) {
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

}  // namespace cmf

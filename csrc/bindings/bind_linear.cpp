// Fully connected layers of few rows, and the memory of what is large.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/bind.h"
#include "common/huge_pages.h"

namespace py = pybind11;

namespace cmf {
namespace {

bool fits(int64_t a, int64_t b) {
  int64_t size = 0;
  return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &size) &&
         size <= INT64_MAX / int64_t(sizeof(float));
}

LinearProblem checked_problem(int64_t rows, int64_t inputs, int64_t outputs, int threads) {
  check_threads(threads);
  if (rows < 0 || rows > kMostLinearRows) {
    throw py::value_error("rows must be between 0 and " + std::to_string(kMostLinearRows) +
                          ", got " + std::to_string(rows));
  }
  if (!fits(rows, inputs) || !fits(outputs, inputs) || !fits(rows, outputs)) {
    throw py::value_error("rows, inputs and outputs must be sizes of matrices that can exist");
  }
  return LinearProblem{rows, inputs, outputs};
}

float* matrix(const char* name, uintptr_t data, int64_t rows, int64_t columns) {
  return static_cast<float*>(checked_pointer(name, data, sizeof(float), rows > 0 && columns > 0));
}

void linear_forward(uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t y, int64_t rows,
                    int64_t inputs, int64_t outputs, int threads) {
  const LinearProblem p = checked_problem(rows, inputs, outputs, threads);
  const float* x_data = matrix("x", x, rows, inputs);
  const float* w_data = matrix("w", w, outputs, inputs);
  const float* bias_data = matrix("bias", bias, 0, 0);
  float* y_data = matrix("y", y, rows, outputs);
  if (rows == 0 || outputs == 0) return;
  py::gil_scoped_release release;
  kernels().linear_forward(p, x_data, w_data, bias_data, y_data, threads);
}

void linear_weight_gradient(uintptr_t dy, uintptr_t x, uintptr_t dw, int64_t rows, int64_t inputs,
                            int64_t outputs, int threads) {
  const LinearProblem p = checked_problem(rows, inputs, outputs, threads);
  if (rows < 1) throw py::value_error("rows must be at least 1 here");
  const float* dy_data = matrix("dy", dy, rows, outputs);
  const float* x_data = matrix("x", x, rows, inputs);
  float* dw_data = matrix("dw", dw, outputs, inputs);
  if (outputs == 0 || inputs == 0) return;
  py::gil_scoped_release release;
  kernels().linear_weight_gradient(p, dy_data, x_data, dw_data, threads);
}

bool huge_pages(uintptr_t data, int64_t bytes) {
  if (bytes < 0 || data > UINTPTR_MAX - static_cast<uintptr_t>(bytes)) {
    throw py::value_error("bytes must be the size of memory that can exist");
  }
  return advise_huge_pages(checked_pointer("data", data, 1, bytes > 0), bytes);
}

}  // namespace

void bind_linear(py::module_& module) {
  module.attr("most_linear_rows") = kMostLinearRows;
  module.def("linear_forward", &linear_forward);
  module.def("linear_weight_gradient", &linear_weight_gradient);
  module.def("advise_huge_pages", &huge_pages);
}

}  // namespace cmf

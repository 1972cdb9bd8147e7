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

void linear_forward(uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t y, int64_t rows,
                    int64_t inputs, int64_t outputs, int threads) {
  check_threads(threads);
  if (rows < 0 || rows > kMostLinearRows) {
    throw py::value_error("rows must be between 0 and " + std::to_string(kMostLinearRows) +
                          ", got " + std::to_string(rows));
  }
  if (!fits(rows, inputs) || !fits(outputs, inputs) || !fits(rows, outputs)) {
    throw py::value_error("rows, inputs and outputs must be sizes of matrices that can exist");
  }
  const bool some = rows > 0 && outputs > 0;
  const int size = sizeof(float);
  const void* x_data = checked_pointer("x", x, size, some && inputs > 0);
  const void* w_data = checked_pointer("w", w, size, some && inputs > 0);
  const void* bias_data = checked_pointer("bias", bias, size, false);
  void* y_data = checked_pointer("y", y, size, some);
  if (!some) return;
  py::gil_scoped_release release;
  kernels().linear_forward(LinearProblem{rows, inputs, outputs}, static_cast<const float*>(x_data),
                           static_cast<const float*>(w_data), static_cast<const float*>(bias_data),
                           static_cast<float*>(y_data), threads);
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
  module.def("advise_huge_pages", &huge_pages);
}

}  // namespace cmf

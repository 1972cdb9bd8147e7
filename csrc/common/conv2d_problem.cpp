#include "common/conv2d_problem.h"

#include "common/check.h"

namespace cmf {
namespace {

constexpr int64_t kMostElements = INT64_C(1) << 24;  // of any one tensor
constexpr int64_t kMostKernel = 7;                   // taps along one axis

void check_elements(const char* name, int64_t a, int64_t b, int64_t c, int64_t d) {
  int64_t total = a;
  bool overflow = __builtin_mul_overflow(total, b, &total);
  overflow |= __builtin_mul_overflow(total, c, &total);
  overflow |= __builtin_mul_overflow(total, d, &total);
  if (overflow || total > kMostElements) {
    throw_invalid(std::string(name) + " is too large for a small convolution");
  }
}

}  // namespace

void complete_conv2d_problem(Conv2dProblem* problem) {
  Conv2dProblem& p = *problem;
  check_range("dtype", p.dtype, 0, 1);
  check_range("batch", p.batch, 0, kMostElements);
  check_range("in_channels", p.in_channels, 1, kMostElements);
  check_range("height", p.height, 1, kMostElements);
  check_range("width", p.width, 1, kMostElements);
  check_range("out_channels", p.out_channels, 1, kMostElements);
  check_range("kernel_height", p.kernel_height, 1, kMostKernel);
  check_range("kernel_width", p.kernel_width, 1, kMostKernel);
  check_range("pad_height", p.pad_height, 0, p.kernel_height - 1);
  check_range("pad_width", p.pad_width, 0, p.kernel_width - 1);
  p.out_height = p.height + 2 * p.pad_height - p.kernel_height + 1;
  p.out_width = p.width + 2 * p.pad_width - p.kernel_width + 1;
  check_range("out_height", p.out_height, 1, kMostElements);
  check_range("out_width", p.out_width, 1, kMostElements);
  check_elements("x", p.batch, p.in_channels, p.height + 2 * kMostKernel,
                 p.width + 2 * kMostKernel);
  check_elements("w", p.out_channels, p.in_channels, p.kernel_height, p.kernel_width);
  check_elements("z", p.batch, p.out_channels, p.out_height + 2 * kMostKernel,
                 p.out_width + 2 * kMostKernel);
  p.itemsize = p.dtype == 0 ? 4 : 8;
}

}  // namespace cmf

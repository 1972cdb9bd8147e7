#include "common/conv_act_pool2d_problem.h"

#include <string.h>

#include "common/check.h"
#include "common/conv_act_pool2d_kernels.h"

namespace cmf {
namespace {

const char* const kAlgorithmNames[kConvAlgorithms] = {"winograd",  "winograd_f6", "few_channels",
                                                      "pointwise", "depthwise",   "implicit_gemm",
                                                      "patches"};
constexpr int64_t kLargest = INT64_C(1) << 40;

void check_axis(const char* name, int64_t in, int64_t taps, int64_t stride, int64_t pad,
                int64_t dilation, int64_t out) {
  const int64_t reach = in + 2 * pad - (dilation * (taps - 1) + 1);
  const int64_t expected = reach < 0 ? 0 : reach / stride + 1;
  if (out != expected) {
    throw_invalid(std::string("pool.") + name + " must be " + std::to_string(expected) +
                  " for this convolution, got " + std::to_string(out));
  }
}

}  // namespace

int32_t conv_algorithm_from_name(const char* name) {
  for (int32_t i = 0; i < kConvAlgorithms; ++i) {
    if (strcmp(kAlgorithmNames[i], name) == 0) return i;
  }
  return -1;
}

void check_conv_act_pool2d_problem(const ConvActPool2dProblem& p) {
  check_range("in_channels", p.in_channels, 1, kLargest);
  check_range("height", p.height, 1, kLargest);
  check_range("width", p.width, 1, kLargest);
  check_range("kernel_height", p.kernel_height, 1, INT16_MAX);
  check_range("kernel_width", p.kernel_width, 1, INT16_MAX);
  check_range("stride_height", p.stride_height, 1, INT16_MAX);
  check_range("stride_width", p.stride_width, 1, INT16_MAX);
  check_range("pad_height", p.pad_height, 0, INT32_MAX);
  check_range("pad_width", p.pad_width, 0, INT32_MAX);
  check_range("dilation_height", p.dilation_height, 1, INT16_MAX);
  check_range("dilation_width", p.dilation_width, 1, INT16_MAX);
  check_range("groups", p.groups, 1, p.in_channels);
  if (p.in_channels % p.groups != 0 || p.pool.channels % p.groups != 0) {
    throw_invalid("in_channels and out_channels must be multiples of groups, got " +
                  std::to_string(p.in_channels) + " and " + std::to_string(p.pool.channels) +
                  " for " + std::to_string(p.groups));
  }
  check_axis("height", p.height, p.kernel_height, p.stride_height, p.pad_height, p.dilation_height,
             p.pool.height);
  check_axis("width", p.width, p.kernel_width, p.stride_width, p.pad_width, p.dilation_width,
             p.pool.width);
  check_bytes("x", p.pool.batch, p.in_channels, p.height, p.width, p.pool.itemsize);
  check_bytes("w", p.pool.channels, p.in_channels / p.groups, p.kernel_height, p.kernel_width,
              p.pool.itemsize);
}

}  // namespace cmf

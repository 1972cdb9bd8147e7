// The depthwise convolution of every instruction set against a naive one; groups of a few channels
// where the instruction set takes them.
#if !defined(CMF_ISA)
#define CMF_ISA baseline
#endif
#include "common/activation.h"
#include "cpu/kernel_table.h"
#include "tests/conv_case.h"

namespace cmf {
namespace test {

void test_depthwise(const KernelTable& kernels);

void test_depthwise(const KernelTable& kernels) {
  using baseline::Activation;
  const ConvShape shapes[] = {
      {2, 17, 6, 35, 17, 3, 3, 1, 1, 1, 17}, {1, 36, 9, 22, 36, 3, 3, 2, 1, 1, 36},
      {1, 16, 7, 41, 16, 5, 5, 1, 2, 1, 16}, {1, 5, 11, 19, 5, 5, 5, 2, 2, 1, 5},
      {1, 18, 7, 20, 18, 7, 7, 1, 3, 1, 18}, {1, 3, 13, 40, 3, 7, 7, 2, 3, 1, 3},
      {1, 16, 8, 37, 16, 2, 4, 1, 0, 2, 16}, {1, 33, 10, 11, 33, 3, 3, 3, 1, 1, 33},
      {1, 16, 2, 3, 16, 3, 3, 1, 1, 1, 16},  {1, 20, 33, 65, 20, 3, 3, 1, 1, 1, 20},
  };
  const ConvAfter afters[] = {
      {int32_t(Activation::kRelu6), 0, Pool::kNone, 1, 1},
      {int32_t(Activation::kLeakyRelu), 0.25, Pool::kNone, 1, 1},
      {int32_t(Activation::kTanh), 0, Pool::kNone, 1, 1},
      {int32_t(Activation::kRelu), 0, Pool::kMax, 2, 2},
      {int32_t(Activation::kRelu), 0, Pool::kAvg, 2, 1},
  };
  const ConvKernels& conv = kernels.conv_act_pool2d[static_cast<int>(ConvAlgorithm::kDepthwise)];
  const auto check_forward = [&](const ConvShape& shape, bool may_refuse) {
    for (const ConvAfter& after : afters) {
      for (int formats = 0; formats < 4; ++formats) {
        const bool x_last = formats & 1, y_last = formats & 2;
        if (may_refuse && conv.refusal(conv_problem(shape, after, x_last, y_last), false)) continue;
        ConvCase(kernels, ConvAlgorithm::kDepthwise, shape, after, x_last, y_last).check_forward();
      }
    }
  };
  for (const ConvShape& shape : shapes) check_forward(shape, false);
  for (const ConvShape& shape : shapes) {
    for (int after = 0; after < 2; ++after) {
      for (bool channels_last : {false, true}) {
        ConvCase(kernels, ConvAlgorithm::kDepthwise, shape, afters[after], channels_last,
                 channels_last)
            .check_backward();
      }
    }
  }
  const ConvShape groups[] = {
      {2, 12, 9, 17, 12, 3, 3, 1, 1, 1, 3},
      {1, 40, 10, 22, 40, 3, 3, 2, 1, 1, 5},
      {1, 32, 6, 13, 32, 3, 3, 1, 1, 1, 2},
  };
  for (const ConvShape& shape : groups) check_forward(shape, true);
  check_forward({1, 3, 9, 18, 12, 3, 3, 1, 1, 1, 3}, false);  // several filters a channel
}

}  // namespace test
}  // namespace cmf

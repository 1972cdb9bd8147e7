// The 1x1 convolution, and that of packed patches, of every instruction set against a naive one.
#if !defined(CMF_ISA)
#define CMF_ISA baseline
#endif
#include "common/activation.h"
#include "tests/conv_case.h"

namespace cmf {
namespace test {

void test_pointwise(const KernelTable& kernels);

void test_pointwise(const KernelTable& kernels) {
  using baseline::Activation;
  const ConvShape shapes[] = {
      {2, 17, 6, 7, 33, 1, 1, 1, 0, 1, 1},
      {1, 5, 3, 2, 3, 1, 1, 1, 0, 1, 1},
      {1, 36, 9, 12, 65, 1, 1, 2, 0, 1, 1},
      {3, 16, 5, 5, 32, 1, 1, 1, 0, 1, 1},
      {1, 70, 2, 40, 15, 1, 1, 1, 0, 1, 1},
      {1, 64, 20, 21, 48, 1, 1, 1, 0, 1, 1},
      {2, 51, 9, 8, 57, 1, 1, 1, 0, 1, 3},
      // few filters, few pixels
      {2, 9, 13, 15, 1, 1, 1, 1, 0, 1, 1},
      {1, 37, 9, 11, 2, 1, 1, 1, 0, 1, 1},
      {2, 64, 5, 8, 3, 1, 1, 1, 0, 1, 1},
      {1, 70, 7, 6, 4, 1, 1, 1, 0, 1, 1},
      {3, 50, 1, 1, 22, 1, 1, 1, 0, 1, 1},
      {16, 7, 1, 1, 9, 1, 1, 1, 0, 1, 1},
  };
  const ConvShape patches[] = {
      {2, 17, 6, 7, 33, 3, 3, 1, 1},   {1, 5, 3, 2, 3, 2, 2, 1, 1},
      {1, 36, 9, 12, 65, 2, 2, 2, 0},  {3, 16, 5, 17, 32, 1, 7, 1, 3},
      {1, 3, 16, 33, 15, 8, 16, 8, 4}, {1, 70, 9, 9, 48, 3, 3, 1, 3, 3},
      {2, 6, 11, 10, 20, 4, 5, 3, 4},
  };
  const ConvAfter afters[] = {
      {int32_t(Activation::kRelu), 0, Pool::kNone, 1, 1},
      {int32_t(Activation::kLeakyRelu), 0.25, Pool::kNone, 1, 1},
      {int32_t(Activation::kTanh), 0, Pool::kNone, 1, 1},
      {int32_t(Activation::kRelu), 0, Pool::kMax, 2, 2},
      {int32_t(Activation::kRelu), 0, Pool::kAvg, 2, 1},
  };
  const auto check = [&](ConvAlgorithm algorithm, const ConvShape& shape) {
    for (const ConvAfter& after : afters) {
      if (after.pool != Pool::kNone && shape.height == 1) continue;  // no window fits
      for (int formats = 0; formats < 4; ++formats) {
        ConvCase(kernels, algorithm, shape, after, formats & 1, formats & 2).check_forward();
      }
    }
  };
  for (const ConvShape& shape : shapes) check(ConvAlgorithm::kPointwise, shape);
  for (const ConvShape& shape : patches) check(ConvAlgorithm::kPatches, shape);
  const ConvShape grouped[] = {
      {2, 48, 9, 7, 51, 3, 3, 1, 1, 1, 3},
      {1, 64, 7, 31, 130, 2, 4, 2, 1, 1, 2},
      {1, 34, 5, 300, 32, 3, 3, 1, 3, 1, 2},
  };
  for (const ConvShape& shape : grouped) {
    for (int i = 0; i < 3; ++i) {
      ConvCase(kernels, ConvAlgorithm::kPatches, shape, afters[i], true, true).check_forward();
    }
  }
}

}  // namespace test
}  // namespace cmf

// The convolution on a matrix unit, or on the plain code that stands for one, against a naive one.
#if !defined(CMF_ISA)
#define CMF_ISA baseline
#endif
#include "common/activation.h"
#include "tests/conv_case.h"

namespace cmf {
namespace test {

void test_implicit_gemm(const KernelTable& kernels);

void test_implicit_gemm(const KernelTable& kernels) {
  using baseline::Activation;
  const ConvShape shapes[] = {
      {2, 34, 6, 7, 33, 3, 3, 1, 1, 1, 1},  {1, 64, 5, 40, 16, 1, 1, 1, 0, 1, 1},
      {1, 36, 9, 12, 50, 4, 4, 2, 1, 1, 1}, {2, 40, 7, 8, 17, 3, 3, 1, 2, 2, 1},
      {1, 3, 12, 13, 40, 7, 7, 2, 3, 1, 1}, {1, 6, 9, 10, 16, 5, 5, 1, 0, 1, 1},
      {1, 33, 11, 9, 8, 1, 1, 2, 0, 1, 1},
  };
  const ConvAfter afters[] = {
      {int32_t(Activation::kLeakyRelu), 0.25, Pool::kNone, 1, 1},
      {int32_t(Activation::kRelu), 0, Pool::kMax, 2, 2},
      {int32_t(Activation::kRelu), 0, Pool::kAvg, 2, 1},
  };
  for (const ConvShape& shape : shapes) {
    for (const ConvAfter& after : afters) {
      for (int formats = 0; formats < 4; ++formats) {
        ConvCase(kernels, ConvAlgorithm::kImplicitGemm, shape, after, formats & 1, formats & 2)
            .check_forward();
      }
    }
  }
}

}  // namespace test
}  // namespace cmf

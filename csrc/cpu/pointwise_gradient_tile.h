// The inner product of a 1x1 convolution's weight gradient: a few rows (output channels) by two
// vectors of columns (input channels), summed over pixels, all sums in registers.
#pragma once

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPixelProductRows = 8;  // 16 sums of 32 registers
#else
constexpr int kPixelProductRows = 4;  // 8 of 16
#endif

struct PixelProducts {
  const float* g;  // [pixels][g_step]: the rows' values are broadcast
  int64_t g_step;
  const float* x;  // [panel][pixels][kLanes]
  int64_t pixels;
  float* sums;  // [kPixelProductRows][sums_step], added to
  int64_t sums_step;
};

// With one or two panels of x.
void pixel_products(const PixelProducts& products, int panels);

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/pointwise_gradient_tile.h"

namespace cmf {
namespace CMF_ISA {
namespace {

template <int kPanels>
void sum_pixels_of(const PixelProducts& p) {
  typedef Vec<float> V;
  constexpr int kV = kLanes<float>;
  constexpr int kRows = kPixelProductRows;
  V sums[kRows][kPanels];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < kPanels; ++v) {
      sums[row][v] = V{};
      __builtin_prefetch(p.sums + row * p.sums_step + v * kV, 1);
    }
  }
  const float* g = p.g;
  const float* x = p.x;
  const int64_t panel = p.pixels * kV;
  for (int64_t left = p.pixels; left > 0; --left, g += p.g_step, x += kV) {
    V values[kPanels];
#pragma GCC unroll 16
    for (int v = 0; v < kPanels; ++v) values[v] = load<float>(x + v * panel);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const V gradient = broadcast<float>(g[row]);
#pragma GCC unroll 16
      for (int v = 0; v < kPanels; ++v) sums[row][v] += gradient * values[v];
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < kPanels; ++v) {
      float* target = p.sums + row * p.sums_step + v * kV;
      store<float>(target, load<float>(target) + sums[row][v]);
    }
  }
}

}  // namespace

void pixel_products(const PixelProducts& products, int panels) {
  if (panels == 1) {
    sum_pixels_of<1>(products);
  } else {
    sum_pixels_of<2>(products);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

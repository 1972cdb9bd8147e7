// Rows of a few filters' outputs, vectors along the row: filters side by side would leave most of a
// vector's lanes idle.
#pragma once

#include "cpu/few_channels_block.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kRowFilters = 8;  // at most
constexpr int kRowVectors = 2;  // of a row at a time
constexpr int64_t kRowLanes = kRowVectors * kLanes<float>;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRowTogether = 8;  // filters: 16 of 32 registers are sums
#elif defined(__AVX2__)
constexpr int kRowTogether = 6;  // 12 of 16
#else
constexpr int kRowTogether = 4;  // 8 of 16, and a product needs one of its own
#endif

// kRowLanes outputs of kFilters filters from `in.x` on: y [filter · plane + output]. The weights
// are [tap][lanes], filters that don't exist 0. Inlined, its addresses would not stay in registers.
template <int kFilters>
__attribute__((noinline)) void row_block(const BlockInput& in, int lanes, int first, float* y,
                                         int64_t plane) {
  typedef Vec<float> V;
  constexpr int kV = kLanes<float>;
  V sums[kFilters][kRowVectors];
#pragma GCC unroll 8
  for (int f = 0; f < kFilters; ++f) {
#pragma GCC unroll 2
    for (int v = 0; v < kRowVectors; ++v) sums[f][v] = broadcast(in.bias[first + f]);
  }
  const float* weights = in.weights + first;
  for (int64_t t = 0; t < in.count; ++t, weights += lanes) {
    const float* x = in.x + in.taps[t];
    V values[kRowVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kRowVectors; ++v) values[v] = load<float>(x + v * kV);
#pragma GCC unroll 8
    for (int f = 0; f < kFilters; ++f) {
      const V w = broadcast(weights[f]);
#pragma GCC unroll 2
      for (int v = 0; v < kRowVectors; ++v) sums[f][v] += w * values[v];
    }
  }
#pragma GCC unroll 8
  for (int f = 0; f < kFilters; ++f) {
#pragma GCC unroll 2
    for (int v = 0; v < kRowVectors; ++v) {
      store<float>(y + (first + f) * plane + v * kV, sums[f][v]);
    }
  }
}

// `width` outputs of `filters` <= kRowFilters filters; up to kRowLanes - 1 behind them are written,
// and of one filter more.
inline void row_of_filters(BlockInput in, int filters, int64_t width, float* y, int64_t plane) {
  // of few_channels_packed.h: as many vectors as hold the filters
  static_assert(kRowFilters <= kBlockLanes, "the filters are one block");
  const int lanes = filters > kLanes<float> ? kBlockLanes : kLanes<float>;
  const float* x = in.x;
  for (int64_t q = 0; q < width; q += kRowLanes) {
    in.x = x + q;
    for (int f = 0, together = 0; f < filters; f += together) {
      const int left = filters - f;
      together = left <= kRowTogether ? left + left % 2 : 4;
      if (together == 2) {
        row_block<2>(in, lanes, f, y + q, plane);
      } else if (together == 4) {
        row_block<4>(in, lanes, f, y + q, plane);
      } else if (together == 6) {
        row_block<6>(in, lanes, f, y + q, plane);
      } else {
        row_block<8>(in, lanes, f, y + q, plane);
      }
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

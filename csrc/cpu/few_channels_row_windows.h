// Windows of 2 x 2 of a contiguous y, vectors along its rows: the maxima go from registers into the
// planes, where vectors of channels would have to be turned first.
#pragma once

#include "cpu/few_channels_planes.h"
#include "cpu/integers.h"
#include "cpu/simd_shuffle.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kWindowsTogether = kLanes<float>;  // of a row: of two vectors of outputs
constexpr int kFiltersTogether = 3;              // at most: 12 of 16 registers are sums

// kWindowsTogether windows of kFilters filters, from in.x and pixel `at` of the planes on; `count`
// of them are stored. `lanes`: of a tap's weights. Inlined, its addresses would not stay in
// registers.
template <int kFilters, bool kTrack>
__attribute__((noinline)) void row_window_block(const BlockInput& in, int64_t lanes,
                                                const Planes& out, int64_t at, int count) {
  typedef Vec<float> V;
  constexpr int kV = kLanes<float>;
  BlockSums<kWindowRows, 2, kFilters> sums;
#pragma GCC unroll 4
  for (int i = 0; i < 2 * kWindowRows; ++i) {
#pragma GCC unroll 3
    for (int f = 0; f < kFilters; ++f) sums.at[i / 2][i % 2][f] = broadcast<float>(in.bias[f]);
  }
  const float *upper = in.x, *lower = in.x + in.row;
  const float* weights = in.weights;
  for (int64_t t = 0; t < in.count; ++t, weights += lanes) {
    const int64_t tap = in.taps[t];
    V w[kFilters];
#pragma GCC unroll 3
    for (int f = 0; f < kFilters; ++f) w[f] = broadcast<float>(weights[f]);
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kWindowRows; ++i) {
      const V value = load<float>((i < 2 ? upper : lower) + tap + i % 2 * kV);
#pragma GCC unroll 3
      for (int f = 0; f < kFilters; ++f) sums.at[i / 2][i % 2][f] += w[f] * value;
    }
  }
  const bool nan = !in.moderate && any_nan(sums);
#pragma GCC unroll 3
  for (int f = 0; f < kFilters; ++f) {
    V a, b, c, d;
    deinterleave<float>(sums.at[0][0][f], sums.at[0][1][f], &a, &b);
    deinterleave<float>(sums.at[1][0][f], sums.at[1][1][f], &c, &d);
    WindowMaximum maximum = __builtin_expect(nan, 0) ? window_maximum_or_nan<kTrack>(a, b, c, d)
                                                     : window_maximum<kTrack>(a, b, c, d);
    activate_values<1>(out.activation, out.param, &maximum.value);
    store_lanes<float>(out.y + f * out.plane + at, maximum.value, count);
    if (!kTrack) continue;
    uint8_t* codes = out.codes + f * out.plane + at;
    if (count == kV) {
      store_bytes<float>(codes, maximum.code);
    } else {
      store_bytes_partial<float>(codes, maximum.code, count);
    }
  }
}

// Rows of `width` windows, from in.x on. A row ends in windows that were taken before, where it has
// that many; the values are the same.
template <int kFilters, bool kTrack>
void filters_row_windows(BlockInput in, int64_t lanes, int64_t width, const Planes& out) {
  const int count = static_cast<int>(least(width, kWindowsTogether));
  const float* x = in.x;
  for (int64_t row = 0; row < out.pixels; row += width, x += kWindowRows * in.row) {
    for (int64_t q = 0; q < width; q += kWindowsTogether) {
      const int64_t first = q > 0 ? least(q, width - kWindowsTogether) : 0;
      in.x = x + 2 * first;
      row_window_block<kFilters, kTrack>(in, lanes, out, row + first, count);
    }
  }
}

template <bool kTrack>
void row_windows(BlockInput in, int64_t lanes, int64_t width, Planes out) {
  for (int f = 0, filters = 0; f < out.channels; f += filters) {
    const int left = out.channels - f;
    filters = left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3;
    if (filters == 3) {
      filters_row_windows<3, kTrack>(in, lanes, width, out);
    } else if (filters == 2) {
      filters_row_windows<2, kTrack>(in, lanes, width, out);
    } else {
      filters_row_windows<1, kTrack>(in, lanes, width, out);
    }
    in.weights += filters;
    in.bias += filters;
    out.y += filters * out.plane;
    if (kTrack) out.codes += filters * out.plane;
  }
}

#if defined(__AVX512F__)
constexpr bool kRowWindowsMeasured = false;
#else
constexpr bool kRowWindowsMeasured = true;
#endif

// Whether rows of `width` windows are less work that way: a last vector of windows is as long as
// any, and so is a last vector of channels; turning blocks takes a quarter of the time.
inline bool takes_row_windows(int64_t width, int64_t filters) {
  const int64_t rows = round_up(width, kWindowsTogether) * most(filters, 2);
  return kRowWindowsMeasured && 4 * rows <= 5 * width * round_up(filters, kLanes<float>);
}

}  // namespace CMF_ISA
}  // namespace cmf

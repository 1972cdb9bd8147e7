// Max pooling of rows of the convolution's output in scratch.
#pragma once

#include "common/pool_window.h"
#include "cpu/few_channels_block.h"

namespace cmf {
namespace CMF_ISA {

// The windows of one row of y.
struct LineWindows {
  const float* const* rows;  // [window rows inside the input][W][vectors]
  PoolWindow vertical;       // which of the window's rows those are
  PoolAxis horizontal;
};

// One window. Height and width 0: from the windows. The first of equals wins, and NaN, where kNan
// says that there may be one, as in pool_reduce.h.
template <int kHeight, int kWidth, bool kNan, int kVectors, bool kTrack>
CMF_HOST_DEVICE void pool_window_max(const LineWindows& in, PoolWindow window,
                                     Vec<float> (&value)[kVectors], Mask<float> (&code)[kVectors]) {
  constexpr int kPixel = kVectors * kLanes<float>;
  const int64_t r_first = kHeight ? 0 : in.vertical.first;
  const int64_t r_last = kHeight ? kHeight : in.vertical.last;
  const int64_t s_first = kWidth ? 0 : window.first;
  const int64_t s_last = kWidth ? kWidth : window.last;
  const int width = kWidth ? kWidth : static_cast<int>(in.horizontal.size);
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    bool fresh = true;
    MaxReducer<float, Vec<float>, Mask<float>, kTrack> reducer(MaskRule<float>{0, false});
    for (int64_t r = r_first; r < r_last; ++r) {
      const float* source = in.rows[r - r_first] + window.start * kPixel + v * kLanes<float>;
      for (int64_t s = s_first; s < s_last; ++s) {
        const Vec<float> z = load<float>(source + s * kPixel);
        const int position = static_cast<int>(r) * width + static_cast<int>(s);
        if (kNan) {
          fresh ? reducer.begin(z, position) : reducer.add(z, position);
        } else if (fresh) {
          value[v] = z;
          if (kTrack) code[v] = Mask<float>{} + position;
        } else {
          const auto larger = z > value[v];
          value[v] = larger ? z : value[v];
          if (kTrack) code[v] = larger ? Mask<float>{} + position : code[v];
        }
        fresh = false;
      }
    }
    if (kNan) {
      value[v] = reducer.value;
      if (kTrack) code[v] = reducer.code;
    }
  }
}

template <int kVectors, bool kTrack>
void pool_line_max(const LineWindows& in, bool nan, const BlockOutput& row) {
  BlockOutput out = row;
  const bool three = in.horizontal.size == 3 && in.vertical.last - in.vertical.first == 3;
  for (int64_t q = 0; q < in.horizontal.out; ++q) {
    const PoolWindow window = pool_window(in.horizontal, q);
    Vec<float> value[kVectors] = {};
    Mask<float> code[kVectors] = {};
    if (nan) {
      pool_window_max<0, 0, true, kVectors, kTrack>(in, window, value, code);
    } else if (three && window.last - window.first == 3) {
      pool_window_max<3, 3, false, kVectors, kTrack>(in, window, value, code);
    } else {
      pool_window_max<0, 0, false, kVectors, kTrack>(in, window, value, code);
    }
    activate_values<kVectors>(out.activation, out.param, value);
    store_output<kVectors>(out, 0, value);
    if (kTrack) store_codes<kVectors>(out, 0, code);
    out.y += out.pixel;
    if (kTrack) out.codes += out.pixel;
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

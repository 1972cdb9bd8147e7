// Weights of a vector of filters, filters side by side.
#pragma once

#include "cpu/integers.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

// Filters k = 0 .. filters - 1 of `w` (`step` apart), [channels][taps] -> target
// [taps][channels][target_step], a vector of filters at each; filters that don't exist as 0. Filter
// k times scale[k], where that is not null.
CMF_HOST_DEVICE void turn_filters_by_tap(const float* w, int64_t step, int64_t filters,
                                         int64_t channels, int64_t taps, float* target,
                                         int64_t target_step, const float* scale = nullptr) {
  constexpr int kV = kLanes<float>;
  const int known = static_cast<int>(least(filters, kV));
  const Vec<float> scales = scale && known > 0 ? load_lanes<float>(scale, known) : broadcast(1.0f);
  const int64_t depth = channels * taps;
  int64_t c = 0, tap = 0;
  for (int64_t i = 0; i < depth; i += kV) {
    const int lanes = static_cast<int>(least(depth - i, kV));
    Vec<float> block[kV];
    for (int k = 0; k < kV; ++k) {
      block[k] = k < filters ? load_lanes<float>(w + k * step + i, lanes) : Vec<float>{};
    }
    transpose_block<float>(block);
    for (int j = 0; j < lanes; ++j) {
      const Vec<float> values = scale ? block[j] * scales : block[j];
      store<float>(target + (tap * channels + c) * target_step, values);
      if (++tap == taps) {
        tap = 0;
        ++c;
      }
    }
  }
}

// The first `count` values of each filter, in the order that they have.
CMF_HOST_DEVICE void turn_filters(const float* w, int64_t step, int64_t filters, int64_t count,
                                  float* target, int64_t target_step,
                                  const float* scale = nullptr) {
  turn_filters_by_tap(w, step, filters, 1, count, target, target_step, scale);
}

}  // namespace CMF_ISA
}  // namespace cmf

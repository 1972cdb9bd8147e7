// Channels of a few planes, side by side.
#pragma once

#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

// `count` planes `plane` apart -> target [width][kLanes], planes that don't exist as 0.
inline void interleave_planes(const float* planes, int64_t plane, int count, int64_t width,
                              float* target) {
  constexpr int kV = kLanes<float>;
  for (int64_t w = 0; w < width; w += kV) {
    const int lanes = width - w < kV ? static_cast<int>(width - w) : kV;
    Vec<float> block[kV];
    for (int c = 0; c < kV; ++c) {
      block[c] = c < count ? load_lanes<float>(planes + c * plane + w, lanes) : Vec<float>{};
    }
    transpose_block<float>(block);
    for (int i = 0; i < lanes; ++i) store<float>(target + (w + i) * kV, block[i]);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

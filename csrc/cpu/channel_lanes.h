// Planes of an NCHW image, up to a vector's worth of them, as pixels whose lanes are channels.
#pragma once

#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

// Pixels 0 .. count - 1 of `channels` planes that lie `plane` elements apart ->
// target [count, rounded up to kLanes][kLanes], 0 in the lanes that are left.
inline void planes_to_lanes(const float* source, int64_t plane, int channels, int64_t count,
                            float* target) {
  constexpr int kV = kLanes<float>;
  for (int64_t i = 0; i < count; i += kV) {
    const int pixels = count - i < kV ? static_cast<int>(count - i) : kV;
    Vec<float> block[kV];
    for (int lane = 0; lane < kV; ++lane) {
      block[lane] =
          lane < channels ? load_lanes<float>(source + lane * plane + i, pixels) : Vec<float>{};
    }
    transpose_block<float>(block);
    for (int j = 0; j < kV; ++j) store<float>(target + (i + j) * kV, block[j]);
  }
}

// The inverse; source [count, rounded up to kLanes][kLanes].
inline void lanes_to_planes(const float* source, int64_t plane, int channels, int64_t count,
                            float* target) {
  constexpr int kV = kLanes<float>;
  for (int64_t i = 0; i < count; i += kV) {
    const int pixels = count - i < kV ? static_cast<int>(count - i) : kV;
    Vec<float> block[kV];
    for (int j = 0; j < kV; ++j) block[j] = load<float>(source + (i + j) * kV);
    transpose_block<float>(block);
    for (int lane = 0; lane < channels; ++lane) {
      store_lanes<float>(target + lane * plane + i, block[lane], pixels);
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

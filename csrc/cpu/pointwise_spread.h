// The input gradient of a 1x1 convolution, from scratch memory to where it belongs.
#pragma once

#include <string.h>

#include "common/conv_act_pool2d_problem.h"
#include "cpu/parts.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

// Pixels [count][channels] -> planes, `plane` elements apart. Reads up to a vector behind the last
// pixel.
inline void pixels_to_planes(const float* source, int64_t channels, int64_t count, int64_t plane,
                             float* planes) {
  constexpr int kV = kLanes<float>;
  for (int64_t c = 0; c < channels; c += kV) {
    for (int64_t i = 0; i < count; i += kV) {
      Vec<float> block[kV];
      for (int j = 0; j < kV; ++j) {
        block[j] = i + j < count ? load<float>(source + (i + j) * channels + c) : Vec<float>{};
      }
      transpose_block<float>(block);
      const int pixels = count - i < kV ? static_cast<int>(count - i) : kV;
      for (int lane = 0; lane < kV && c + lane < channels; ++lane) {
        store_lanes<float>(planes + (c + lane) * plane + i, block[lane], pixels);
      }
    }
  }
}

// With a stride: rows `rows` of the convolution's output, `step` elements from a pixel to the next,
// and the zeros between and behind them, into an image or plane of `channels` side by side.
inline void spread_pixels(const ConvActPool2dProblem& p, Range rows, const float* source,
                          int64_t step, int64_t channels, float* image) {
  const Range wide = {rows.first * p.stride_height,
                      rows.last < p.pool.height ? rows.last * p.stride_height : p.height};
  const size_t pixel = static_cast<size_t>(channels) * sizeof(float);
  memset(image + wide.first * p.width * channels, 0,
         static_cast<size_t>((wide.last - wide.first) * p.width) * pixel);
  for (int64_t h = rows.first; h < rows.last; ++h) {
    float* row = image + h * p.stride_height * p.width * channels;
    for (int64_t w = 0; w < p.pool.width; ++w, source += step) {
      float* target = row + w * p.stride_width * channels;
      for (int64_t c = 0; c < channels; ++c) target[c] = source[c];
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

// How a transposed convolution without overlaps is a matrix product: of the pixels of its input and
// the weights of each tap.
#pragma once

#include "common/conv_act_pool2d_problem.h"
#include "cpu/integers.h"
#include "cpu/pointwise_tile.h"

namespace cmf {
namespace CMF_ISA {

struct PatchLayout {
  explicit PatchLayout(const ConvActPool2dProblem& p)
      : pixels(p),
        inner(p.pool.channels),
        taps(p.kernel_height * p.kernel_width),
        filters(p.in_channels),
        whole(!p.x_channels_last && p.pool.height == 1 && p.pool.width == 1),
        pixels_are_rows(whole || p.x_channels_last) {
    if (whole) {
      filters *= taps;
      taps = 1;
    }
    panels = divide_up(filters, kTileLanes);
    pixels.in_channels = pixels.image_channels = inner;
    pixels.height = p.pool.height;
    pixels.width = p.pool.width;
    pixels.kernel_height = pixels.kernel_width = 1;
    pixels.stride_height = pixels.stride_width = 1;
    // of one pixel both formats are the same; this one is read faster
    pixels.x_channels_last = p.pool.channels_last || p.pool.height * p.pool.width == 1;
  }

  // As columns [tap][filters / kTileLanes][inner][kTileLanes]; as rows [tap], and tile by tile
  // [inner / kLanes][rows][kLanes].
  int64_t tap_floats() const {
    return pixels_are_rows ? panels * kTileLanes * inner : filters * round_up(inner, kLanes<float>);
  }

  ConvActPool2dProblem pixels;  // a 1x1 convolution of the same input
  int64_t inner;                // channels that the products sum over
  int64_t taps;
  int64_t filters;  // output channels of a tap
  int64_t panels;   // of filters
  // An image of one pixel becomes one NCHW patch: the output's channels and pixels, in their order,
  // are the filters of one tap.
  const bool whole;
  const bool pixels_are_rows;  // what is broadcast; or the filters
};

// w [inner][K][R][S], as `PatchLayout::tap_floats` says.
void pack_patch_weights(const PatchLayout& layout, const float* w, float* packed, int threads);

}  // namespace CMF_ISA
}  // namespace cmf

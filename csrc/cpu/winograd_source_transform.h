// The templates of winograd_source.h.
#pragma once

#include "cpu/winograd_source.h"
#include "cpu/winograd_tile.h"

namespace cmf {
namespace CMF_ISA {

template <class W>
void WinogradSource::transform(int64_t n, int64_t row, int64_t column, const ChannelBlock& block,
                               float* v, int64_t step) const {
  constexpr int kReach = W::kAlpha - 1;
  const int64_t h = row * p_.stride_height + block.tap_height - p_.pad_height;
  if (framed_) {
    const int64_t w = column * p_.stride_width + block.tap_width;
    const float* source = frame_ + ((h - first_) * columns_ + w) * pixel_;
    if (channels_.merged()) source += block.first;
    transform_input_tile<W>(source, p_.stride_height * columns_ * pixel_, p_.stride_width * pixel_,
                            v, step);
    return;
  }
  const int64_t w = column * p_.stride_width + block.tap_width - p_.pad_width;
  const float* image = x_ + n * p_.height * p_.width * p_.image_channels;
  const bool inside = h >= 0 && w >= 0 && h + kReach * p_.stride_height < p_.height &&
                      w + kReach * p_.stride_width < p_.width;
  if (inside && block.lanes == kLanes<float>) {
    transform_input_tile<W>(image + (h * p_.width + w) * p_.image_channels + block.first,
                            p_.stride_height * p_.width * p_.image_channels,
                            p_.stride_width * p_.image_channels, v, step);
  } else {
    transform_edge<W>(image, h, w, block, v, step);
  }
}

// A tile that reaches into the padding, or a block that doesn't fill a vector.
template <class W>
void WinogradSource::transform_edge(const float* image, int64_t h_first, int64_t w_first,
                                    const ChannelBlock& block, float* v, int64_t step) const {
  constexpr int kAlpha = W::kAlpha;
  constexpr int kV = kLanes<float>;
  float tile[kAlpha * kAlpha * kV];
  for (int i = 0; i < kAlpha; ++i) {
    const int64_t h = h_first + i * p_.stride_height;
    for (int j = 0; j < kAlpha; ++j) {
      const int64_t w = w_first + j * p_.stride_width;
      const bool inside = h >= 0 && h < p_.height && w >= 0 && w < p_.width;
      const float* pixel = image + (h * p_.width + w) * p_.image_channels + block.first;
      store<float>(tile + (i * kAlpha + j) * kV,
                   inside ? load_lanes<float>(pixel, block.lanes) : Vec<float>{});
    }
  }
  transform_input_tile<W>(tile, kAlpha * kV, kV, v, step);
}

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/winograd_source.h"

#include <string.h>

#include "cpu/interleave_planes.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

}  // namespace

bool WinogradSource::prepare(FrameSize most) {
  if (!framed_) return true;
  pixel_ = channels_.merged() ? p_.in_channels : kV;
  columns_ = most.columns;
  // vectors of few channels read beyond the last pixel
  const int64_t count = most.rows * most.columns * pixel_ + 2 * kV;
  if (!memory_.allocate(count)) return false;
  frame_ = memory_.data;
  memset(frame_, 0, static_cast<size_t>(count) * sizeof(float));
  return true;
}

void WinogradSource::fill(int64_t n, int64_t first, int64_t rows, int64_t channel) {
  const float* image = x_ + n * p_.image_channels * p_.height * p_.width;
  first_ = first;
  const int64_t length = columns_ * pixel_;
  for (int64_t i = 0; i < rows; ++i) {
    float* target = frame_ + i * length;
    const int64_t h = first + i;
    if (h < 0 || h >= p_.height) {
      memset(target, 0, static_cast<size_t>(length) * sizeof(float));
    } else {
      fill_row(image, h, channel, target);
    }
  }
}

// The frame's margins on the left and right are zero from the start, and stay so.
void WinogradSource::fill_row(const float* image, int64_t h, int64_t channel, float* target) const {
  const int64_t room = columns_ - p_.pad_width;
  const int64_t width = p_.width < room ? p_.width : room;
  if (width <= 0) return;
  target += p_.pad_width * pixel_;
  const int64_t plane = p_.height * p_.width;
  if (!channels_.merged()) {
    const int64_t left = p_.in_channels - channel;
    interleave_planes(image + channel * plane + h * p_.width, plane,
                      left < kV ? static_cast<int>(left) : kV, width, target);
  } else if (p_.x_channels_last) {
    // all pixels at once where nothing lies between them
    const bool dense = p_.image_channels == pixel_;
    const size_t bytes = static_cast<size_t>(dense ? width * pixel_ : pixel_) * sizeof(float);
    const float* row = image + h * p_.width * p_.image_channels;
    for (int64_t w = 0; w < (dense ? 1 : width); ++w) {
      memcpy(target + w * pixel_, row + w * p_.image_channels, bytes);
    }
  } else {
    for (int64_t c = 0; c < p_.in_channels; ++c) {
      const float* row = image + c * plane + h * p_.width;
      for (int64_t w = 0; w < width; ++w) target[w * pixel_ + c] = row[w];
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

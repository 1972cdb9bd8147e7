#include "cpu/merged_frame.h"

#include <string.h>

#include "cpu/integers.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

CMF_HOST_DEVICE void copy_floats(const float* source, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + kV <= count; i += kV) store<float>(target + i, load<float>(source + i));
  if (i < count) {
    const int lanes = static_cast<int>(count - i);
    store_lanes<float>(target + i, load_lanes<float>(source + i, lanes), lanes);
  }
}

}  // namespace

MergedFrame::MergedFrame(const ConvActPool2dProblem& problem, const float* x, int64_t rows,
                         int64_t columns)
    : p_(problem),
      x_(x),
      rows_(rows),
      columns_(columns),
      dense_(problem.x_channels_last && problem.image_channels == problem.in_channels),
      together_(problem.stride_width * problem.in_channels),
      channels_(problem.stride_height * together_) {}

bool MergedFrame::prepare() {
  const int64_t count = rows_ * row_step() + kV;
  if (!frame_.allocate(count)) return false;
  memset(frame_.data, 0, static_cast<size_t>(count) * sizeof(float));
  return dense_ || pixels_.allocate(p_.width * p_.in_channels);
}

void MergedFrame::fill(int64_t n, int64_t first, int64_t rows) {
  first_ = first;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < p_.stride_height; ++i) {
      const int64_t h = (first + row) * p_.stride_height + i - p_.pad_height;
      float* target = frame_.data + row * row_step() + i * together_;
      if (h >= 0 && h < p_.height) {
        copy_row(pixels_of_row(n, h), target);
        continue;
      }
      for (int64_t column = 0; column < columns_; ++column) {
        memset(target + column * channels_, 0, static_cast<size_t>(together_) * sizeof(float));
      }
    }
  }
}

const float* MergedFrame::pixels_of_row(int64_t n, int64_t h) {
  const int64_t channels = p_.in_channels;
  const float* image = x_ + n * p_.image_channels * p_.height * p_.width;
  if (dense_) return image + h * p_.width * channels;
  if (p_.x_channels_last) {
    const float* row = image + h * p_.width * p_.image_channels;
    for (int64_t w = 0; w < p_.width; ++w) {
      copy_floats(row + w * p_.image_channels, channels, pixels_.data + w * channels);
    }
    return pixels_.data;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const float* row = image + (c * p_.height + h) * p_.width;
    for (int64_t w = 0; w < p_.width; ++w) pixels_.data[w * channels + c] = row[w];
  }
  return pixels_.data;
}

// What lies outside of the row is 0 from the start, and stays so.
void MergedFrame::copy_row(const float* row, float* target) const {
  const int64_t length = p_.width * p_.in_channels;
  const int64_t before = p_.pad_width * p_.in_channels;
  const int64_t some = divide_up(before + length, together_);
  const int64_t columns = least(columns_, some);
  for (int64_t column = 0; column < columns; ++column) {
    const int64_t first = column * together_ - before;
    const int64_t from = most(first, 0);
    const int64_t to = least(first + together_, length);
    if (from < to) copy_floats(row + from, to - from, target + column * channels_ + from - first);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

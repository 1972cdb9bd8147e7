#include <stdlib.h>

#include "cpu/integers.h"
#include "cpu/winograd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

constexpr int64_t kMostTaps = 5;  // of a part: r of F(4, r)

// Taps a stride, along the axis that has more of them.
int64_t most_taps(const ConvActPool2dProblem& p) {
  return most(taps_from(p.kernel_height, p.stride_height, 0),
              taps_from(p.kernel_width, p.stride_width, 0));
}

// The first tap of part `i / stride` of phase `i % stride`.
int64_t first_tap(int64_t i, int64_t stride, int64_t taps) {
  return i / stride * stride * taps + i % stride;
}

// What pooling costs an output where it isn't done in registers, in multiply-adds.
constexpr int64_t kPoolProducts = 32;
// What reading a transformed weight costs that is not in the second cache, in multiply-adds.
constexpr int64_t kWeightProducts = 16;
constexpr int64_t kFarWeightBytes = 1 << 20;  // such weights

// Multiplications of F(m, 3) for an image's outputs, a channel and filter.
int64_t products_of(int64_t m, int64_t height, int64_t width) {
  return divide_up(height, m) * divide_up(width, m) * (m + 2) * (m + 2);
}

// The same for all images, and the way of the transformed weights to them.
int64_t cost_of(int64_t m, const ConvActPool2dProblem& p) {
  return p.pool.batch * products_of(m, p.pool.height, p.pool.width) +
         kWeightProducts * (m + 2) * (m + 2);
}

// Those of all phases and parts.
int64_t virtual_channels(const ConvActPool2dProblem& p) {
  return p.in_channels * p.stride_height * p.stride_width * winograd_parts(p).count();
}

// Whether so few tiles share the weights that fetching them takes the time: F(2, 3) has 16 for each
// of the filter's 9, F(4, 3) 36. It rounds less.
bool weights_dominate(const ConvActPool2dProblem& p, int64_t outputs) {
  const double weights =
      double(virtual_channels(p)) * double(p.pool.channels) * double((outputs + 2) * (outputs + 2));
  return weights * sizeof(float) >= kFarWeightBytes && 9 * cost_of(2, p) <= 8 * cost_of(outputs, p);
}

}  // namespace

int winograd_taps(const ConvActPool2dProblem& p) {
  // as few parts as can be, of as few taps: 6 are 3 + 3, 7 are 4 + 3, 9 are 5 + 4
  const int64_t taps = most_taps(p);
  return static_cast<int>(divide_up(taps, divide_up(taps, kMostTaps)));
}

WinogradParts winograd_parts(const ConvActPool2dProblem& p) {
  const int64_t taps = winograd_taps(p);
  return WinogradParts{divide_up(taps_from(p.kernel_height, p.stride_height, 0), taps),
                       divide_up(taps_from(p.kernel_width, p.stride_width, 0), taps)};
}

int winograd_gradient_outputs(const ConvActPool2dProblem& p) {
  const int64_t height = p.pool.height;
  const int64_t width = p.pool.width;
  if (winograd_taps(p) != 3) return 4;
  // it rounds twice as much: not for a little
  const bool five = 20 * products_of(5, height, width) <= 17 * products_of(4, height, width);
  const int outputs = five ? 5 : 4;
  return weights_dominate(p, outputs) ? 2 : outputs;
}

int winograd_outputs(const ConvActPool2dProblem& p) {
  const int64_t height = p.pool.height;
  const int64_t width = p.pool.width;
  const int outputs = winograd_gradient_outputs(p);
  const bool pairs = p.pool.pool != Pool::kNone && p.pool.pool_height == 2 &&
                     p.pool.pool_width == 2 && p.pool.pool_stride_height == 2;
  if (outputs != 5 || !pairs) return outputs;
  // they would be pooled in registers
  const int64_t saved = products_of(4, height, width) - products_of(5, height, width);
  return saved * virtual_channels(p) >= kPoolProducts * height * width ? 5 : 4;
}

WinogradChannels::~WinogradChannels() {
  free(blocks_);
  free(index_);
}

bool WinogradChannels::prepare(const ConvActPool2dProblem& p, int taps) {
  merged_ = p.stride_width > 1 && p.in_channels % kV != 0;
  const WinogradParts parts = winograd_parts(p);
  const int64_t stride_width = merged_ ? 1 : p.stride_width;
  const int64_t rows = p.stride_height * parts.height;
  const int64_t columns = stride_width * parts.width;
  pixel_ = merged_ ? p.stride_width * p.in_channels : p.in_channels;
  const int64_t of_phase = (pixel_ + kV - 1) / kV;
  const int64_t room = rows * columns * of_phase;
  if (room > INT32_MAX / 16) return false;
  blocks_ = static_cast<ChannelBlock*>(malloc(static_cast<size_t>(room) * sizeof(ChannelBlock)));
  index_ = static_cast<int32_t*>(malloc(static_cast<size_t>(room) * 5 * sizeof(int32_t)));
  if (!blocks_ || !index_) return false;
  // channels outside, phases inside: what is read together stands together
  for (int64_t first = 0; first < pixel_; first += kV) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t tap_height = first_tap(i, p.stride_height, taps);
      if (tap_height >= p.kernel_height) continue;
      for (int64_t j = 0; j < columns; ++j) {
        // a merged pixel has the taps of its first column
        const int64_t tap_width = first_tap(j, stride_width, taps);
        if (tap_width >= p.kernel_width) continue;
        ChannelBlock& block = blocks_[count_++];
        block.tap_height = static_cast<int32_t>(tap_height);
        block.tap_width = static_cast<int32_t>(tap_width);
        block.first = static_cast<int32_t>(first);
        block.lanes = static_cast<int32_t>(pixel_ - first < kV ? pixel_ - first : kV);
      }
    }
  }
  lanes_ = index_ + 4 * count_;
  for (int b = 0; b < count_; ++b) {
    const ChannelBlock& block = blocks_[b];
    lanes_[b] = block.lanes;
    const bool short_height = taps_from(p.kernel_height, p.stride_height, block.tap_height) < taps;
    const bool short_width = taps_from(p.kernel_width, p.stride_width, block.tap_width) < taps;
    for (int list = 0; list < 4; ++list) {
      if ((list / 2 && short_height) || (list % 2 && short_width)) continue;
      index_[list * count_ + counts_[list]++] = b;
    }
  }
  return true;
}

}  // namespace CMF_ISA
}  // namespace cmf

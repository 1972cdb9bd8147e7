// A depthwise convolution's weights as its NHWC loops read them.
#pragma once

#include "cpu/depthwise_pixels.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {

// w [K, group, R, S] -> taps [R, S][group][step], and the bias, filled up with zeros to whole
// vectors.
class DepthwiseFilter {
 public:
  explicit DepthwiseFilter(int64_t filters)
      : filters_(filters), step_(round_up(filters, kLanes<float>)) {}

  // `turned`: by half a turn, as the input's gradient wants it. False where memory could not be
  // had.
  bool prepare(const ConvActPool2dProblem& p, const void* weights, const void* bias, bool turned) {
    const int64_t taps = p.kernel_height * p.kernel_width;
    group_ = group_size(p);
    if (!scratch_.allocate((taps * group_ + 2) * step_)) return false;
    const float* w = static_cast<const float*>(weights);
    const float* b = static_cast<const float*>(bias);
    float* row = scratch_.data;
    for (int64_t i = 0; i < taps * group_; ++i, row += step_) {
      const int64_t tap = i / group_;
      const float* source = w + i % group_ * taps + (turned ? taps - 1 - tap : tap);
      for (int64_t k = 0; k < step_; ++k) row[k] = k < filters_ ? source[k * group_ * taps] : 0.0f;
    }
    for (int64_t k = 0; k < step_; ++k) row[k] = b && k < filters_ ? b[k] : 0.0f;
    for (int64_t k = 0; k < step_; ++k) row[step_ + k] = 0.0f;
    bias_ = row;
    return true;
  }

  const float* taps(int64_t k_first) const { return scratch_.data + k_first; }

  // For channels from k_first on; `p` says what the loops read, y_row is as long as p.pool.width.
  PixelKernel kernel(const ConvActPool2dProblem& p, int64_t k_first, int64_t y_pixel,
                     QuickActivation act, bool past_caches) const {
    return PixelKernel{p,
                       y_pixel,
                       y_pixel * p.pool.width,
                       group_,
                       step_,
                       scratch_.data + k_first,
                       bias_ + k_first,
                       bias_ + step_,
                       act,
                       past_caches};
  }

 private:
  const int64_t filters_;
  const int64_t step_;
  int group_ = 1;
  Scratch<float> scratch_;
  const float* bias_ = nullptr;
};

}  // namespace CMF_ISA
}  // namespace cmf

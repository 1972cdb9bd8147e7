// What the forward blocks read beside the input: weights by vectors of channels, and where a tap's
// input lies.
#pragma once

#include <stdlib.h>

#include "cpu/few_channels_block.h"
#include "cpu/few_channels_frame.h"

namespace cmf {
namespace CMF_ISA {

// Outputs along a row that a frame has inputs for: short rows are read by whole blocks.
inline int64_t frame_columns(const ConvActPool2dProblem& problem) {
  return problem.pool.width > kLineMost ? problem.pool.width : kLineMost;
}

// Weights and taps, once a call and for all threads.
class Packed {
 public:
  ~Packed() {
    free(weights_);
    free(taps_);
  }
  bool allocate(const ConvActPool2dProblem& p) {
    count_ = p.in_channels * p.kernel_height * p.kernel_width;
    padded_ = (p.pool.channels + kLanes<float> - 1) / kLanes<float> * kLanes<float>;
    weights_ = static_cast<float*>(malloc(static_cast<size_t>((count_ + 1) * padded_) * 4));
    taps_ = static_cast<int32_t*>(malloc(static_cast<size_t>(count_) * 4));
    return weights_ && taps_;
  }
  // w [K, C, R, S] -> [block of channels][R, S, C][lanes of the block]; the bias behind all.
  void fill(const ConvActPool2dProblem& p, const Frame& frame, const float* w, const float* bias) {
    const int64_t channels = p.in_channels, area = p.kernel_height * p.kernel_width;
    int64_t t = 0;
    for (int64_t r = 0; r < p.kernel_height; ++r) {
      for (int64_t s = 0; s < p.kernel_width; ++s) {
        for (int64_t c = 0; c < channels; ++c, ++t) {
          taps_[t] =
              static_cast<int32_t>(r * frame.row() + s * frame.column() + c * frame.channel());
          const float* source = w + c * area + r * p.kernel_width + s;
          for (int64_t k = 0; k < padded_; ++k) {
            const int64_t first = k / kBlockLanes * kBlockLanes;
            const int64_t lanes = padded_ - first < kBlockLanes ? padded_ - first : kBlockLanes;
            weights_[first * count_ + t * lanes + (k - first)] =
                k < p.pool.channels ? source[k * count_] : 0.0f;
          }
        }
      }
    }
    float* target = weights_ + count_ * padded_;
    for (int64_t k = 0; k < padded_; ++k) {
      target[k] = bias && k < p.pool.channels ? bias[k] : 0.0f;
    }
  }
  int64_t count() const { return count_; }
  int64_t padded() const { return padded_; }
  const int32_t* taps() const { return taps_; }
  const float* weights(int64_t k_first) const { return weights_ + k_first * count_; }
  const float* bias(int64_t k_first) const { return weights_ + padded_ * count_ + k_first; }

 private:
  int64_t count_ = 0;   // taps
  int64_t padded_ = 0;  // K in whole vectors
  float* weights_ = nullptr;
  int32_t* taps_ = nullptr;
};

}  // namespace CMF_ISA
}  // namespace cmf

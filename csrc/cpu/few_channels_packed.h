// What the forward blocks read beside the input: weights by vectors of channels, and where a tap's
// input lies.
#pragma once

#include "cpu/few_channels_block.h"
#include "cpu/few_channels_frame.h"
#include "cpu/few_channels_winograd.h"
#include "cpu/turn_filters.h"

namespace cmf {
namespace CMF_ISA {

// Weights and taps, once a call and for all threads.
class Packed {
 public:
  // `filters`: whether those of few_channels_winograd.h are wanted too.
  bool allocate(const ConvActPool2dProblem& p, bool filters) {
    count_ = p.in_channels * p.kernel_height * p.kernel_width;
    padded_ = round_up(p.pool.channels, kLanes<float>);
    const int64_t transformed = filters ? kFrequencies * p.in_channels * padded_ : 0;
    return weights_.allocate((count_ + 1) * padded_) && taps_.allocate(count_) &&
           filters_.allocate(transformed);
  }
  // w [K, C, R, S] -> [block of channels][R, S, C][lanes of the block]; the bias behind all.
  void fill(const ConvActPool2dProblem& p, const Frame& frame, const float* w, const float* bias) {
    const int64_t channels = p.in_channels, area = p.kernel_height * p.kernel_width;
    int64_t t = 0;
    for (int64_t r = 0; r < p.kernel_height; ++r) {
      for (int64_t s = 0; s < p.kernel_width; ++s) {
        for (int64_t c = 0; c < channels; ++c, ++t) {
          taps_.data[t] =
              static_cast<int32_t>(r * frame.row() + s * frame.column() + c * frame.channel());
        }
      }
    }
    for (int64_t k = 0; k < padded_; k += kLanes<float>) {
      const int64_t first = k / kBlockLanes * kBlockLanes;
      const int64_t lanes = least(padded_ - first, kBlockLanes);
      turn_filters_by_tap(w + k * count_, count_, p.pool.channels - k, channels, area,
                          weights_.data + first * count_ + (k - first), lanes);
    }
    float* target = weights_.data + count_ * padded_;
    for (int64_t k = 0; k < padded_; ++k) {
      target[k] = bias && k < p.pool.channels ? bias[k] : 0.0f;
    }
    int32_t moderate = 1;  // as wide as a float: the loop is of vectors
    for (int64_t i = 0; i < (count_ + 1) * padded_; ++i) {
      moderate &= int32_t(weights_.data[i] > -kModerate) & int32_t(weights_.data[i] < kModerate);
    }
    moderate_ = moderate != 0;
  }
  // w [K, C, 3, 3] -> [block of channels][frequency][C][lanes of the block]
  void transform(const ConvActPool2dProblem& p, const float* w) {
    const int64_t channels = p.in_channels;
    memset(filters_.data, 0,
           static_cast<size_t>(kFrequencies * channels * padded_) * sizeof(float));
    for (int64_t k = 0; k < p.pool.channels; ++k) {
      const int64_t first = k / kBlockLanes * kBlockLanes;
      const int64_t lanes = padded_ - first < kBlockLanes ? padded_ - first : kBlockLanes;
      float* target = filters_.data + first * channels * kFrequencies + (k - first);
      for (int64_t c = 0; c < channels; ++c) {
        transform_filter(w + (k * channels + c) * 9, target + c * lanes, channels * lanes);
      }
    }
  }
  const float* filters(int64_t k_first) const {
    return filters_.data + k_first * count_ / 9 * kFrequencies;
  }
  int64_t count() const { return count_; }
  int64_t padded() const { return padded_; }
  bool moderate() const { return moderate_; }  // weights and bias
  const int32_t* taps() const { return taps_.data; }
  const float* weights(int64_t k_first) const { return weights_.data + k_first * count_; }
  const float* bias(int64_t k_first) const { return weights_.data + padded_ * count_ + k_first; }

 private:
  int64_t count_ = 0;   // taps
  int64_t padded_ = 0;  // K in whole vectors
  bool moderate_ = false;
  Scratch<float> weights_;
  Scratch<float> filters_;
  Scratch<int32_t> taps_;
};

}  // namespace CMF_ISA
}  // namespace cmf

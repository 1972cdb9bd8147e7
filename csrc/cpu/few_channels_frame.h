// Rows of one image inside a frame of zeros, so that no loop over a filter's taps has edges.
#pragma once

#include <string.h>

#include "common/conv_act_pool2d_problem.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

// Numbers are moderate where they are below 2**62: products of two are finite then, and sums of
// those are never infinity minus infinity.
constexpr int kModerateBits = (127 + 62) << 23;
constexpr float kModerate = 0x1p62f;

// A row is [C][W + padding] where `planar`, else [W + padding][C], which takes a channels_last x.
class Frame {
 public:
  // `columns`: outputs along a row that may be read, those that count and those behind them.
  Frame(const ConvActPool2dProblem& problem, int64_t columns, bool planar)
      : p_(problem), planar_(planar) {
    width_ = p_.width + 2 * p_.pad_width;
    const int64_t reach = (columns - 1) * p_.stride_width + p_.kernel_width;
    if (width_ < reach) width_ = reach;
    row_ = width_ * p_.in_channels;
  }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

  // `rows`: the most that `fill` will be asked for. `slack`: floats behind the last that may be
  // read.
  bool allocate(int64_t rows, int64_t slack) {
    if (!memory_.allocate(rows * row_ + slack)) return false;
    data_ = memory_.data;
    memset(data_, 0, static_cast<size_t>(rows * row_ + slack) * sizeof(float));
    return true;
  }

  // Rows h_first .. h_first + rows - 1 of image x, those outside it as zeros.
  void fill(const float* x, int64_t h_first, int64_t rows) {
    const int64_t channels = p_.in_channels, width = p_.width, pad = p_.pad_width;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = h_first + i;
      float* target = data_ + i * row_;
      if (h < 0 || h >= p_.height) {
        memset(target, 0, static_cast<size_t>(row_) * sizeof(float));
      } else if (p_.x_channels_last && planar_) {
        split(x + h * width * channels, target + pad);
      } else if (p_.x_channels_last) {
        memcpy(target + pad * channels, x + h * width * channels,
               static_cast<size_t>(width * channels) * sizeof(float));
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          memcpy(target + c * width_ + pad, x + (c * p_.height + h) * width,
                 static_cast<size_t>(width) * sizeof(float));
        }
      }
    }
  }

  // Whether the first `rows` rows are moderate numbers.
  bool is_moderate(int64_t rows) const {
    Mask<float> special = {};
    for (int64_t i = 0; i < rows * row_; i += kLanes<float>) {  // what lies behind is a number
      const Mask<float> bits = bit_cast<Mask<float>>(load<float>(data_ + i));
      special |= (bits & 0x7f800000) >= kModerateBits;
    }
    int any = 0;
    for (int lane = 0; lane < kLanes<float>; ++lane) any |= special[lane];
    return any == 0;
  }

  const float* data() const { return data_; }
  int64_t row() const { return row_; }  // floats from one row to the next
  int64_t column() const { return planar_ ? 1 : p_.in_channels; }
  int64_t channel() const { return planar_ ? width_ : 1; }

 private:
  // A row of pixels into rows of channels.
  void split(const float* x, float* target) const {
    const int64_t channels = p_.in_channels;
    int64_t w = 0;
#if defined(__AVX512F__)
    if (channels == 3) {
      // lane i of channel c is value 3 i + c of three vectors: of the first two, then of the third
      const __m512i step =
          _mm512_mullo_epi32(bit_cast<__m512i>(iota<float>(0, 1)), _mm512_set1_epi32(3));
      for (; w + 16 <= p_.width; w += 16) {
        const __m512 a = _mm512_loadu_ps(x + 3 * w), b = _mm512_loadu_ps(x + 3 * w + 16);
        const __m512 third = _mm512_loadu_ps(x + 3 * w + 32);
        for (int c = 0; c < 3; ++c) {
          const __m512i at = _mm512_add_epi32(step, _mm512_set1_epi32(c));
          const __m512 two = _mm512_permutex2var_ps(a, at, b);
          const __mmask16 last = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(32));
          _mm512_storeu_ps(target + c * width_ + w,
                           _mm512_mask_permutexvar_ps(two, last, at, third));
        }
      }
    }
#endif
    for (; w < p_.width; ++w) {
      for (int64_t c = 0; c < channels; ++c) target[c * width_ + w] = x[w * channels + c];
    }
  }

  const ConvActPool2dProblem& p_;
  bool planar_;
  int64_t width_;
  int64_t row_;
  Scratch<float> memory_;
  float* data_ = nullptr;
};

}  // namespace CMF_ISA
}  // namespace cmf

// Rows of the pooled gradient, times the activation's derivative where that follows from what the
// pooled position saved, with the channels side by side whatever the format of y.
#pragma once

#include <string.h>

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/act_pool2d.h"
#include "cpu/act_row.h"
#include "cpu/pool_average.h"
#include "cpu/scratch.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

// A vector of channels of pixel i: g + i * g_pixel; its positions or mask bits: codes +
// i * codes_pixel, of which those of the problem's channels may be read.
struct PooledBlock {
  const float* g;
  int64_t g_pixel;
  const uint8_t* codes;
  int64_t codes_pixel;
};

class PooledRows {
 public:
  // `lanes`: channels of a block, a multiple of the vector.
  PooledRows(const ActPool2dProblem& problem, const ConvBackwardTensors& tensors, int lanes)
      : p_(problem), t_(tensors), lanes_(lanes) {}
  PooledRows(const PooledRows&) = delete;
  PooledRows& operator=(const PooledRows&) = delete;

  // `rows`: the most that will be asked for.
  bool prepare(int64_t rows) {
    const int64_t pixels = rows * p_.out_width;
    const int64_t width = p_.channels_last ? p_.channels : lanes_;
    const int64_t planes = p_.channels_last ? 0 : pixels * lanes_;
    const int64_t g = pixels * width + lanes_;  // the last pixel is read by whole vectors
    if (!memory_.allocate(g + planes) || !codes_.allocate(planes)) return false;
    g_ = memory_.data;
    planes_ = g_ + g;
    memset(g_, 0, static_cast<size_t>(g) * sizeof(float));
    return true;
  }

  // Rows p_first .. p_last - 1 of image n. Before their blocks.
  void stage(int64_t n, int64_t p_first, int64_t p_last) {
    n_ = n;
    p_first_ = p_first;
    p_last_ = p_last;
    if (!p_.channels_last) return;
    const int64_t row = p_.out_width * p_.channels;
    derive((n * p_.out_height + p_first) * row, (p_last - p_first) * row, p_.channels, g_);
  }

  // Their channels k_first .. k_first + count - 1.
  PooledBlock block(int64_t k_first, int count) {
    if (p_.channels_last) {
      const int64_t at = (n_ * p_.out_height + p_first_) * p_.out_width * p_.channels + k_first;
      const uint8_t* codes = static_cast<const uint8_t*>(t_.index);
      return PooledBlock{g_ + k_first, p_.channels, codes ? codes + at : nullptr, p_.channels};
    }
    const int64_t pixels = (p_last_ - p_first_) * p_.out_width;
    for (int k = 0; k < count; ++k) derive(plane(k_first + k), pixels, 1, planes_ + k * pixels);
    for (int k = 0; k < count; k += kLanes<float>) turn(k_first, k, count, pixels);
    return PooledBlock{g_, lanes_, codes_.data, lanes_};
  }

 private:
  int64_t plane(int64_t k) const {
    return ((n_ * p_.channels + k) * p_.out_height + p_first_) * p_.out_width;
  }

  // dy * act' (max and none) or dy / divisor (average) from element `at` of y on.
  void derive(int64_t at, int64_t count, int64_t channels, float* g) {
    const float* dy = static_cast<const float*>(t_.dy) + at;
    const float* saved = t_.saved ? static_cast<const float*>(t_.saved) + at : nullptr;
    const uint8_t* index = t_.index ? static_cast<const uint8_t*>(t_.index) + at : nullptr;
    if (p_.pool != Pool::kAvg) {
      // some at a time, and as much of the next rows
      const int64_t row = p_.out_width * channels,
                    image = p_.channels * p_.out_height * p_.out_width;
      const int64_t next = p_last_ < p_.out_height ? count : image - p_first_ * row;
      for (int64_t i = 0; i < count; i += kSome) {
        const int64_t some = count - i < kSome ? count - i : kSome;
        fetch(dy + next + i, some * 4);
        if (saved) fetch(saved + next + i, some * 4);
        if (index) fetch(index + next + i, some);
        backward_row(p_, dy + i, saved ? saved + i : nullptr, RowBias<float>{-0.0f, nullptr}, g + i,
                     some);
      }
      return;
    }
    widen_row(dy, g, count);
    const PoolAxis vertical = vertical_axis(p_), horizontal = horizontal_axis(p_);
    const PoolCover interior = pool_interior(horizontal);
    for (int64_t p = p_first_; p < p_last_; ++p) {
      const int64_t rows = pool_extent(vertical, pool_window(vertical, p), p_.count_include_pad);
      divide_average_row(horizontal, interior, rows, p_.count_include_pad, channels,
                         g + (p - p_first_) * p_.out_width * channels);
    }
  }

  static constexpr int64_t kSome = 512;

  // Into the second cache: it is needed only later.
  static CMF_HOST_DEVICE void fetch(const void* source, int64_t bytes) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(source);
    for (int64_t line = 0; line < bytes; line += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(address + static_cast<uintptr_t>(line)), 0,
                         2);
    }
  }

  // A vector of the block's channels, from channel k of the block on: planes become pixels.
  void turn(int64_t k_first, int k, int count, int64_t pixels) {
    constexpr int kV = kLanes<float>;
    const int filters = count - k < kV ? count - k : kV;
    const uint8_t* index = static_cast<const uint8_t*>(t_.index);
    for (int64_t i = 0; i < pixels; i += kV) {
      const int some = pixels - i < kV ? static_cast<int>(pixels - i) : kV;
      Vec<float> values[kV];
      for (int j = 0; j < kV; ++j) {
        values[j] =
            j < filters ? load_lanes<float>(planes_ + (k + j) * pixels + i, some) : Vec<float>{};
      }
      transpose_block<float>(values);
      for (int j = 0; j < some; ++j) store<float>(g_ + (i + j) * lanes_ + k, values[j]);
    }
    if (index) turn_codes(index + plane(k_first + k), k, filters, pixels);
  }

  // Four pixels of a channel are one lane.
  void turn_codes(const uint8_t* index, int k, int filters, int64_t pixels) {
    constexpr int kV = kLanes<float>;
    constexpr int kPixels = 4 * kV;
    const int64_t plane = p_.out_height * p_.out_width;
    for (int64_t i = 0; i < pixels; i += kPixels) {
      const int some = pixels - i < kPixels ? static_cast<int>(pixels - i) : kPixels;
      Vec<float> quads[kV];
      for (int j = 0; j < kV; ++j) {
        quads[j] = Vec<float>{};
        if (j >= filters) continue;
        if (some == kPixels) {
          __builtin_memcpy(quads + j, index + j * plane + i, kPixels);
        } else {
          uint8_t bytes[kPixels] = {};
          CopyItems<kPixels / 2, 1>::copy(bytes, index + j * plane + i, some);
          __builtin_memcpy(quads + j, bytes, kPixels);
        }
      }
      transpose_block<float>(quads);
      for (int pixel = 0; pixel < some; ++pixel) {
        const Mask<float> quad = bit_cast<Mask<float>>(quads[pixel / 4]);
        store_bytes<float>(codes_.data + (i + pixel) * lanes_ + k,
                           (quad >> (8 * (pixel % 4))) & 255);
      }
    }
  }

  const ActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const int lanes_;
  int64_t n_ = 0;
  int64_t p_first_ = 0;
  int64_t p_last_ = 0;
  Scratch<float> memory_;
  Scratch<uint8_t> codes_;   // [pixels][lanes]
  float* g_ = nullptr;       // [pixels][K] or [pixels][lanes]
  float* planes_ = nullptr;  // [lanes][pixels]
};

}  // namespace CMF_ISA
}  // namespace cmf

// Rows of the pooled gradient, times the activation's derivative where that follows from what the
// pooled position saved, with the channels side by side whatever the format of y.
#pragma once

#include <string.h>

#include "common/activation.h"
#include "common/conv_act_pool2d_kernels.h"
#include "cpu/act_pool2d.h"
#include "cpu/act_row.h"
#include "cpu/expand_pooled.h"
#include "cpu/pool_average.h"
#include "cpu/scratch.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

// Adds a vector's first `count` lanes.
inline void add_lanes(Vec<float> vector, int count, double* sums) {
  float lanes[kLanes<float>];
  store<float>(lanes, vector);
  for (int j = 0; j < kLanes<float> && j < count; ++j) sums[j] += static_cast<double>(lanes[j]);
}

class PooledRows {
 public:
  // `lanes`: channels of a block, a multiple of the vector.
  PooledRows(const ActPool2dProblem& problem, const ConvBackwardTensors& tensors, int lanes)
      : p_(problem), t_(tensors), lanes_(lanes) {
    const Activation activation = static_cast<Activation>(p_.activation);
    const bool linear = activation == Activation::kRelu || activation == Activation::kLeakyRelu;
    quick_ = p_.pool != Pool::kAvg &&
             (p_.saved == Saved::kNothing || (p_.saved == Saved::kOutput && linear));
  }
  PooledRows(const PooledRows&) = delete;
  PooledRows& operator=(const PooledRows&) = delete;

  // `rows`: the most that will be asked for.
  bool prepare(int64_t rows) {
    const int64_t pixels = rows * p_.out_width;
    padded_ = (p_.channels + kLanes<float> - 1) / kLanes<float> * kLanes<float>;
    const int64_t width = p_.channels_last ? padded_ : lanes_;
    const int64_t planes = p_.channels_last ? 0 : pixels * lanes_;
    const int64_t g = pixels * width + lanes_;  // the last pixel is read by whole vectors
    if (!memory_.allocate(g + (quick_ ? 0 : planes)) || !codes_.allocate(planes) ||
        !sums_.allocate(padded_)) {
      return false;
    }
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
    const int64_t first = (n * p_.out_height + p_first) * p_.out_width * p_.channels;
    const int64_t pixels = (p_last - p_first) * p_.out_width;
    if (!quick_) {
      derive(first, pixels * p_.channels, p_.channels, g_);
      return;
    }
    switch (static_cast<Activation>(p_.activation)) {
      case Activation::kRelu:
        return gather<Activation::kRelu>(first, pixels);
      case Activation::kLeakyRelu:
        return gather<Activation::kLeakyRelu>(first, pixels);
      default:
        return gather<Activation::kIdentity>(first, pixels);
    }
  }

  // Their channels k_first .. k_first + count - 1. Adds the sums over the pixels to sums [count]
  // where that costs nothing and sums is not null.
  PooledBlock block(int64_t k_first, int count, double* sums) {
    if (!quick_) return block_of<Activation::kIdentity>(k_first, count, sums);
    switch (static_cast<Activation>(p_.activation)) {
      case Activation::kRelu:
        return block_of<Activation::kRelu>(k_first, count, sums);
      case Activation::kLeakyRelu:
        return block_of<Activation::kLeakyRelu>(k_first, count, sums);
      default:
        return block_of<Activation::kIdentity>(k_first, count, sums);
    }
  }

 private:
  int64_t plane(int64_t k) const {
    return ((n_ * p_.channels + k) * p_.out_height + p_first_) * p_.out_width;
  }

  // `A`: the activation where quick_.
  template <Activation A>
  PooledBlock block_of(int64_t k_first, int count, double* sums) {
    const int64_t pixels = (p_last_ - p_first_) * p_.out_width;
    const uint8_t* codes = codes_.data;
    int64_t codes_pixel = lanes_;
    if (p_.channels_last) {
      const int64_t at = (n_ * p_.out_height + p_first_) * p_.out_width * p_.channels + k_first;
      codes = t_.index ? static_cast<const uint8_t*>(t_.index) + at : nullptr;
      codes_pixel = p_.channels;
      const bool add = quick_ && sums;
      for (int k = 0; add && k < count; ++k) {
        sums[k] += static_cast<double>(sums_.data[k_first + k]);
      }
      return PooledBlock{g_ + k_first, quick_ ? padded_ : p_.channels, codes, codes_pixel, add};
    } else {
      for (int k = 0; k < count && !quick_; ++k) {
        derive(plane(k_first + k), pixels, 1, planes_ + k * pixels);
      }
      for (int k = 0; k < count; k += kLanes<float>) turn<A>(k_first, k, count, pixels, sums);
    }
    return PooledBlock{g_, lanes_, codes, codes_pixel, quick_ && sums};
  }

  // All channels of a channels_last dy from element `at` on, some at a time.
  template <Activation A>
  void gather(int64_t at, int64_t pixels) {
    constexpr int kV = kLanes<float>;
    for (int64_t k = 0; k < p_.channels; k += 4 * kV) {
      const int64_t left = p_.channels - k;
      if (left > 3 * kV) {
        gather_some<A, 4>(at, k, pixels);
      } else if (left > 2 * kV) {
        gather_some<A, 3>(at, k, pixels);
      } else if (left > kV) {
        gather_some<A, 2>(at, k, pixels);
      } else {
        gather_some<A, 1>(at, k, pixels);
      }
    }
  }

  // kVectors vectors of channels from channel k on, and their sums over the pixels.
  template <Activation A, int kVectors>
  void gather_some(int64_t at, int64_t k, int64_t pixels) {
    constexpr int kV = kLanes<float>;
    const int64_t left = p_.channels - k;
    const int last = left < kVectors * kV ? static_cast<int>(left - (kVectors - 1) * kV) : kV;
    const float param = static_cast<float>(p_.activation_param);
    const float* dy = static_cast<const float*>(t_.dy) + at + k;
    const float* saved =
        A == Activation::kIdentity ? dy : static_cast<const float*>(t_.saved) + at + k;
    const uint8_t* index = t_.index ? static_cast<const uint8_t*>(t_.index) + at + k : nullptr;
    const int64_t ahead = pixels * p_.channels;  // where the next rows are
    float* g = g_ + k;
    Vec<float> sums[kVectors] = {};
    for (int64_t i = 0; i < pixels; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int lanes = v + 1 < kVectors ? kV : last;
        fetch(dy + ahead + v * kV, 1);
        if (A != Activation::kIdentity) fetch(saved + ahead + v * kV, 1);
        const Vec<float> value = backward_from_output<A>(
            load_lanes<float>(dy + v * kV, lanes), load_lanes<float>(saved + v * kV, lanes), param);
        store<float>(g + v * kV, value);
        sums[v] += value;
      }
      if (index) fetch(index + i * p_.channels + ahead, 1);
      dy += p_.channels;
      saved += p_.channels;
      g += padded_;
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store<float>(sums_.data + k + v * kV, sums[v]);
  }

  // How far from these rows of a plane the next ones are.
  int64_t ahead_in_plane(int64_t pixels) const {
    if (p_last_ < p_.out_height) return pixels;
    return (p_.channels * p_.out_height - p_first_) * p_.out_width;
  }

  // dy * act' (max and none) or dy / divisor (average) from element `at` of y on.
  void derive(int64_t at, int64_t count, int64_t channels, float* g) {
    const float* dy = static_cast<const float*>(t_.dy) + at;
    const float* saved = t_.saved ? static_cast<const float*>(t_.saved) + at : nullptr;
    const uint8_t* index = t_.index ? static_cast<const uint8_t*>(t_.index) + at : nullptr;
    if (p_.pool != Pool::kAvg) {
      // some at a time, and as much of the next rows
      const int64_t next = channels > 1 ? count : ahead_in_plane(count);
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
  template <Activation A>
  void turn(int64_t k_first, int k, int count, int64_t pixels, double* sums) {
    constexpr int kV = kLanes<float>;
    const int filters = count - k < kV ? count - k : kV;
    const int64_t first = plane(k_first + k), step = p_.out_height * p_.out_width;
    const float* dy = static_cast<const float*>(t_.dy) + first;
    const float* saved =
        A == Activation::kIdentity ? dy : static_cast<const float*>(t_.saved) + first;
    const float param = static_cast<float>(p_.activation_param);
    const int64_t ahead = ahead_in_plane(pixels);
    Vec<float> sum = {};
    for (int64_t i = 0; i < pixels; i += kV) {
      const int some = pixels - i < kV ? static_cast<int>(pixels - i) : kV;
      Vec<float> values[kV];
      for (int j = 0; j < kV; ++j) {
        values[j] = Vec<float>{};
        if (j >= filters) continue;
        if (!quick_) {
          values[j] = load_lanes<float>(planes_ + (k + j) * pixels + i, some);
          continue;
        }
        const int64_t offset = j * step + i;
        fetch(dy + offset + ahead, 1);
        if (A != Activation::kIdentity) fetch(saved + offset + ahead, 1);
        values[j] = backward_from_output<A>(load_lanes<float>(dy + offset, some),
                                            load_lanes<float>(saved + offset, some), param);
      }
      transpose_block<float>(values);
      for (int j = 0; j < some; ++j) {
        store<float>(g_ + (i + j) * lanes_ + k, values[j]);
        sum += values[j];
      }
    }
    if (sums && quick_) add_lanes(sum, filters, sums + k);
    if (t_.index) turn_codes(static_cast<const uint8_t*>(t_.index) + first, k, filters, pixels);
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
  bool quick_;          // derived here, not by act_row.h
  int64_t padded_ = 0;  // K in whole vectors
  int64_t n_ = 0;
  int64_t p_first_ = 0;
  int64_t p_last_ = 0;
  Scratch<float> memory_;
  Scratch<float> sums_;      // [K]: over the pixels, where quick_ and channels_last
  Scratch<uint8_t> codes_;   // [pixels][lanes]
  float* g_ = nullptr;       // [pixels][lanes], or channels_last [pixels][K]
  float* planes_ = nullptr;  // [lanes][pixels]
};

}  // namespace CMF_ISA
}  // namespace cmf

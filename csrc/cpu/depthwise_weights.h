// The weight gradient of a depthwise convolution over rows of pixels whose lanes are channels: for
// each tap a vector of sums, in registers over a band of rows.
#pragma once

#include "cpu/depthwise_pixels.h"

namespace cmf {
namespace CMF_ISA {

// dw[r, s] += sum over p, q of g[p, q] x[p · stride - pad + r, q · stride - pad + s].
struct WeightKernel {
  const ConvActPool2dProblem& p;
  const float* x;   // the image's first pixel
  int64_t x_pixel;  // elements from a pixel to the next
  const float* g;   // [P][Q], the first row's first pixel (it may lie before what is in memory)
  int64_t g_pixel;
  Range rows;   // of g
  float* sums;  // [R, S][step]: dw, then dbias
  int64_t step;
};

CMF_HOST_DEVICE void add_to(float* target, Vec<float> value, int lanes) {
  store_lanes<float>(target, load_lanes<float>(target, lanes) + value, lanes);
}

// Taps r_first .. r_first + kDown - 1 down and kSize across, channels c .. c + lanes - 1.
template <int kSize, int kStride, int kDown, bool kWhole>
CMF_HOST_DEVICE void tap_sums(const WeightKernel& k, int64_t r_first, int64_t c, int lanes) {
  typedef Vec<float> V;
  const ConvActPool2dProblem& p = k.p;
  const int64_t Q = p.pool.width;
  const auto at = [&](const float* source) __attribute__((always_inline)) {
    return kWhole ? load<float>(source) : load_lanes<float>(source, lanes);
  };
  // columns whose taps all lie in the image
  int64_t inside_first = (p.pad_width + kStride - 1) / kStride;
  const int64_t reach = p.width + p.pad_width - kSize;
  int64_t inside_last = reach < 0 ? 0 : reach / kStride + 1;
  if (inside_last > Q) inside_last = Q;
  if (inside_first > inside_last) inside_first = inside_last;
  V sums[kDown][kSize];
#pragma GCC unroll 16
  for (int i = 0; i < kDown; ++i) {
#pragma GCC unroll 16
    for (int s = 0; s < kSize; ++s) sums[i][s] = V{};
  }
  for (int64_t row = k.rows.first; row < k.rows.last; ++row) {
    const float* g = k.g + row * Q * k.g_pixel + c;
    const float* x[kDown];
#pragma GCC unroll 16
    for (int i = 0; i < kDown; ++i) {
      const int64_t h = row * kStride - p.pad_height + r_first + i;
      const bool inside = h >= 0 && h < p.height;
      x[i] = inside ? k.x + (h * p.width - p.pad_width) * k.x_pixel + c : nullptr;
    }
    for (int64_t q = 0; q < Q; ++q) {
      if (q == inside_first) q = inside_last;  // those come below
      if (q >= Q) break;
      const V value = at(g + q * k.g_pixel);
#pragma GCC unroll 16
      for (int i = 0; i < kDown; ++i) {
        if (!x[i]) continue;
#pragma GCC unroll 16
        for (int s = 0; s < kSize; ++s) {
          const int64_t w = q * kStride + s;
          if (w < p.pad_width || w >= p.width + p.pad_width) continue;
          sums[i][s] += value * at(x[i] + w * k.x_pixel);
        }
      }
    }
    for (int64_t q = inside_first; q < inside_last; ++q) {
      V value = at(g + q * k.g_pixel);
      keep_in_register(value);
#pragma GCC unroll 16
      for (int i = 0; i < kDown; ++i) {
        if (!x[i]) continue;
#pragma GCC unroll 16
        for (int s = 0; s < kSize; ++s) {
          sums[i][s] += value * at(x[i] + (q * kStride + s) * k.x_pixel);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kDown; ++i) {
#pragma GCC unroll 16
    for (int s = 0; s < kSize; ++s) {
      add_to(k.sums + ((r_first + i) * kSize + s) * k.step + c, sums[i][s], lanes);
    }
  }
}

template <int kSize, int kStride>
__attribute__((noinline)) void weight_sums(const WeightKernel& k, int64_t channels) {
  constexpr int kDown = kSize == 3 ? 3 : 1;  // enough sums to hide a product's latency
  for (int64_t c = 0; c < channels; c += kLanes<float>) {
    const int lanes = channels - c < kLanes<float> ? static_cast<int>(channels - c) : kLanes<float>;
    for (int64_t r = 0; r < kSize; r += kDown) {
      if (lanes == kLanes<float>) {
        tap_sums<kSize, kStride, kDown, true>(k, r, c, lanes);
      } else {
        tap_sums<kSize, kStride, kDown, false>(k, r, c, lanes);
      }
    }
  }
}

// Any filter, stride and dilation.
inline void any_weight_sums(const WeightKernel& k, int64_t channels) {
  const ConvActPool2dProblem& p = k.p;
  for (int64_t c = 0; c < channels; c += kLanes<float>) {
    const int lanes = channels - c < kLanes<float> ? static_cast<int>(channels - c) : kLanes<float>;
    for (int64_t tap = 0; tap < p.kernel_height * p.kernel_width; ++tap) {
      const int64_t down = tap / p.kernel_width * p.dilation_height - p.pad_height;
      const int64_t right = tap % p.kernel_width * p.dilation_width - p.pad_width;
      Vec<float> sum = {};
      for (int64_t row = k.rows.first; row < k.rows.last; ++row) {
        const int64_t h = row * p.stride_height + down;
        if (h < 0 || h >= p.height) continue;
        for (int64_t q = 0; q < p.pool.width; ++q) {
          const int64_t w = q * p.stride_width + right;
          if (w < 0 || w >= p.width) continue;
          sum += load_lanes<float>(k.g + (row * p.pool.width + q) * k.g_pixel + c, lanes) *
                 load_lanes<float>(k.x + (h * p.width + w) * k.x_pixel + c, lanes);
        }
      }
      add_to(k.sums + tap * k.step + c, sum, lanes);
    }
  }
}

inline void add_weight_sums(const WeightKernel& k, int64_t channels) {
  const ConvActPool2dProblem& p = k.p;
  if (!is_square(p)) return any_weight_sums(k, channels);
  const bool one = p.stride_width == 1;
  if (p.kernel_width == 3)
    return one ? weight_sums<3, 1>(k, channels) : weight_sums<3, 2>(k, channels);
  if (p.kernel_width == 5)
    return one ? weight_sums<5, 1>(k, channels) : weight_sums<5, 2>(k, channels);
  return one ? weight_sums<7, 1>(k, channels) : weight_sums<7, 2>(k, channels);
}

// The bias gradient: the sum of g.
inline void add_bias_sums(const WeightKernel& k, int64_t channels, float* target) {
  const int64_t Q = k.p.pool.width;
  for (int64_t c = 0; c < channels; c += kLanes<float>) {
    const int lanes = channels - c < kLanes<float> ? static_cast<int>(channels - c) : kLanes<float>;
    Vec<float> sums[4] = {};  // enough to hide an addition's latency
    const float* g = k.g + k.rows.first * Q * k.g_pixel + c;
    const int64_t pixels = (k.rows.last - k.rows.first) * Q;
    int64_t i = 0;
    for (; i + 4 <= pixels; i += 4) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sums[j] += load_lanes<float>(g + (i + j) * k.g_pixel, lanes);
    }
    for (; i < pixels; ++i) sums[0] += load_lanes<float>(g + i * k.g_pixel, lanes);
    add_to(target + c, (sums[0] + sums[1]) + (sums[2] + sums[3]), lanes);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

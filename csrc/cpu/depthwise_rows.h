// Depthwise 3x3 convolution of NCHW planes at stride 1: vectors run along a row. Each load of the
// input serves all the output rows of a strip that it reaches.
#pragma once

#include "cpu/depthwise.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kTaps = 3;  // each way
constexpr int kStripRows = 4;
constexpr int kStripsAhead = 4;

// Which of the columns first .. first + kLanes - 1 lie in a row of `width`; loads the others as 0.
class Window {
 public:
  CMF_HOST_DEVICE Window(int64_t first, int64_t width)
      : low_(clamp(-first)), high_(clamp(width - first)) {
#if defined(__AVX512F__)
    mask_ = ((1u << high_) - 1u) & ~((1u << low_) - 1u);
#elif defined(__AVX2__)
    const Mask<float> lane = iota<float>(0, 1);
    mask_ = (lane >= low_) & (lane < high_);
#endif
  }
  // from the first column's address on, whether or not it lies in the row
  CMF_HOST_DEVICE Vec<float> load_at(const float* source) const {
#if defined(__AVX512F__)
    return bit_cast<Vec<float>>(_mm512_maskz_loadu_ps(__mmask16(mask_), source));
#elif defined(__AVX2__)
    return bit_cast<Vec<float>>(_mm256_maskload_ps(source, bit_cast<__m256i>(mask_)));
#else
    float values[kLanes<float>] = {};
    for (int i = low_; i < high_; ++i) values[i] = source[i];
    return load<float>(values);
#endif
  }

 private:
  static CMF_HOST_DEVICE int clamp(int64_t lanes) {
    return lanes < 0 ? 0 : lanes > kLanes<float> ? kLanes<float> : static_cast<int>(lanes);
  }
  int low_;
  int high_;
#if defined(__AVX512F__)
  uint32_t mask_;
#elif defined(__AVX2__)
  Mask<float> mask_;
#endif
};

// One plane: what stays the same for all of its rows.
struct RowKernel {
  const ConvActPool2dProblem& p;
  const float* x;  // the plane
  const float* w;  // [3, 3]
  float bias;
  QuickActivation act;
  bool past_caches;
};

// kRows vectors of output, one below the other: columns q .. of rows p ..
template <int kRows, bool kEdge>
CMF_HOST_DEVICE void row_tile(const RowKernel& k, const Vec<float> (&weights)[kTaps * kTaps],
                              int64_t p, int64_t q, float* y) {
  const int64_t h = p - k.p.pad_height;
  const int64_t first = q - k.p.pad_width;
  const int64_t width = k.p.width;
  const int64_t Q = k.p.pool.width;
  Vec<float> sums[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sums[i] = broadcast(k.bias);
#pragma GCC unroll 16
  for (int j = 0; j < kRows - 1 + kTaps; ++j) {
    if (h + j < 0 || h + j >= k.p.height) continue;
    const float* row = k.x + (h + j) * width + first;
    // further than the hardware looks, over the end of a plane
    if (j >= kTaps - 1) __builtin_prefetch(row + kStripsAhead * kStripRows * width);
#pragma GCC unroll 16
    for (int s = 0; s < kTaps; ++s) {
      Vec<float> value = kEdge ? Window(first + s, width).load_at(row + s) : load<float>(row + s);
      keep_in_register(value);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const int r = j - i;
        if (r >= 0 && r < kTaps) sums[i] += value * weights[r * kTaps + s];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const Vec<float> value = k.act(sums[i]);
    float* target = y + i * Q + q;
    if (k.past_caches) {
      stream(target, value);
    } else if (kEdge && Q - q < kLanes<float>) {
      store_partial<float>(target, value, static_cast<int>(Q - q));
    } else {
      store<float>(target, value);
    }
  }
}

// Output rows p .. p + kRows - 1; `y`: row p.
template <int kRows>
__attribute__((noinline)) void row_strip(const RowKernel& k, int64_t p, float* y) {
  Vec<float> weights[kTaps * kTaps];
#pragma GCC unroll 16
  for (int i = 0; i < kTaps * kTaps; ++i) weights[i] = broadcast(k.w[i]);
  const int64_t Q = k.p.pool.width;
  for (int64_t q = 0; q < Q; q += kLanes<float>) {
    const int64_t first = q - k.p.pad_width;
    if (first >= 0 && first + kTaps - 1 + kLanes<float> <= k.p.width && q + kLanes<float> <= Q) {
      row_tile<kRows, false>(k, weights, p, q, y);
    } else {
      row_tile<kRows, true>(k, weights, p, q, y);
    }
  }
}

// Rows first .. last - 1 of a plane; `y`: the first. The last strip may go over rows again.
inline void plane_rows(const RowKernel& k, int64_t first, int64_t last, float* y) {
  const int64_t Q = k.p.pool.width;
  if (last - first < kStripRows) {
    for (int64_t p = first; p < last; ++p) row_strip<1>(k, p, y + (p - first) * Q);
    return;
  }
  for (int64_t p = first; p < last; p += kStripRows) {
    const int64_t start = p + kStripRows <= last ? p : last - kStripRows;
    row_strip<kStripRows>(k, start, y + (start - first) * Q);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

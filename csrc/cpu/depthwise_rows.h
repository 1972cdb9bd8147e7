// Depthwise convolution of NCHW planes: vectors run along a row. Each load of the input serves all
// the output rows of a strip that it reaches.
#pragma once

#include "cpu/depthwise.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kStripRows = 4;

// Columns first .. first + kLanes - 1 of a row; 0 beside it.
CMF_HOST_DEVICE Vec<float> load_window(const float* row, int64_t first, int64_t width) {
  constexpr int kV = kLanes<float>;
  const int64_t low = first < 0 ? -first : 0;
  const int64_t room = width - first;
  const int64_t high = room < kV ? room : kV;
  if (low >= high) return Vec<float>{};
#if defined(__AVX512F__)
  const uint32_t mask = ((1u << high) - 1u) & ~((1u << low) - 1u);
  return bit_cast<Vec<float>>(_mm512_maskz_loadu_ps(__mmask16(mask), row + first));
#elif defined(__AVX2__)
  const Mask<float> lane = iota<float>(0, 1);
  const Mask<float> inside = (lane >= static_cast<int>(low)) & (lane < static_cast<int>(high));
  return bit_cast<Vec<float>>(_mm256_maskload_ps(row + first, bit_cast<__m256i>(inside)));
#else
  float values[kV] = {};
  for (int64_t i = low; i < high; ++i) values[i] = row[first + i];
  return load<float>(values);
#endif
}

// Columns first, first + stride, ... of a row; 0 beside it.
CMF_HOST_DEVICE Vec<float> gather_window(const float* row, int64_t first, int64_t stride,
                                         int64_t width) {
  if (stride == 1) return load_window(row, first, width);
  float values[kLanes<float>];
  for (int i = 0; i < kLanes<float>; ++i) {
    const int64_t w = first + i * stride;
    values[i] = w >= 0 && w < width ? row[w] : 0.0f;
  }
  return load<float>(values);
}

// One plane: what stays the same for all of its rows.
struct RowKernel {
  const ConvActPool2dProblem& p;
  const float* x;  // the plane
  const float* w;  // [R, S]
  float bias;
  QuickActivation act;
};

// The vectors that the kSize taps of one row want, from column `first` on.
template <int kSize, int kStride, bool kEdge>
CMF_HOST_DEVICE void tap_columns(const float* row, int64_t first, int64_t width,
                                 Vec<float> (&columns)[kSize]) {
  const auto whole = [&](int64_t column) __attribute__((always_inline)) {
    return kEdge ? load_window(row, column, width) : load<float>(row + column);
  };
#pragma GCC unroll 16
  for (int s = 0; s < kSize; s += kStride) {
    if (kStride == 1) {
      columns[s] = whole(first + s);
    } else {
      Vec<float> unused;
      deinterleave<float>(whole(first + s), whole(first + s + kLanes<float>), &columns[s],
                          s + 1 < kSize ? &columns[s + 1] : &unused);
    }
  }
}

// kRows vectors of output, one below the other: columns q .. of rows p ..
template <int kSize, int kStride, int kRows, bool kEdge>
CMF_HOST_DEVICE void row_tile(const RowKernel& k, const Vec<float> (&weights)[kSize * kSize],
                              int64_t p, int64_t q, float* y) {
  const int64_t h = p * kStride - k.p.pad_height;
  const int64_t first = q * kStride - k.p.pad_width;
  Vec<float> sums[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sums[i] = broadcast(k.bias);
#pragma GCC unroll 32
  for (int j = 0; j < (kRows - 1) * kStride + kSize; ++j) {
    if (h + j < 0 || h + j >= k.p.height) continue;
    const float* row = k.x + (h + j) * k.p.width;
    Vec<float> columns[kSize];
    tap_columns<kSize, kStride, kEdge>(row, first, k.p.width, columns);
#pragma GCC unroll 16
    for (int s = 0; s < kSize; ++s) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const int r = j - i * kStride;
        if (r >= 0 && r < kSize) sums[i] += columns[s] * weights[r * kSize + s];
      }
    }
  }
  const int64_t Q = k.p.pool.width;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const Vec<float> value = k.act(sums[i]);
    if (kEdge && Q - q < kLanes<float>) {
      store_partial<float>(y + i * Q + q, value, static_cast<int>(Q - q));
    } else {
      store<float>(y + i * Q + q, value);
    }
  }
}

// Output rows p .. p + kRows - 1; `y`: row p.
template <int kSize, int kStride, int kRows>
__attribute__((noinline)) void row_strip(const RowKernel& k, int64_t p, float* y) {
  Vec<float> weights[kSize * kSize];
#pragma GCC unroll 64
  for (int i = 0; i < kSize * kSize; ++i) weights[i] = broadcast(k.w[i]);
  const int64_t Q = k.p.pool.width;
  const int64_t first = -k.p.pad_width;
  // what a vector's taps touch; with stride 2, pairs of whole vectors
  const int64_t reach = kStride == 1 ? kSize - 1 + kLanes<float> : kSize + 2 * kLanes<float>;
  for (int64_t q = 0; q < Q; q += kLanes<float>) {
    const int64_t column = first + q * kStride;
    if (column >= 0 && column + reach <= k.p.width && q + kLanes<float> <= Q) {
      row_tile<kSize, kStride, kRows, false>(k, weights, p, q, y);
    } else {
      row_tile<kSize, kStride, kRows, true>(k, weights, p, q, y);
    }
  }
}

// Any filter, stride and dilation.
template <int kRows>
__attribute__((noinline)) void any_row_strip(const RowKernel& k, int64_t p_first, float* y) {
  const ConvActPool2dProblem& p = k.p;
  const int64_t Q = p.pool.width;
  for (int64_t q = 0; q < Q; q += kLanes<float>) {
    Vec<float> sums[kRows];
    for (int i = 0; i < kRows; ++i) sums[i] = broadcast(k.bias);
    const int64_t first = q * p.stride_width - p.pad_width;
    for (int64_t r = 0; r < p.kernel_height; ++r) {
      for (int i = 0; i < kRows; ++i) {
        const int64_t h = (p_first + i) * p.stride_height - p.pad_height + r * p.dilation_height;
        if (h < 0 || h >= p.height) continue;
        const float* row = k.x + h * p.width;
        for (int64_t s = 0; s < p.kernel_width; ++s) {
          const int64_t column = first + s * p.dilation_width;
          sums[i] +=
              gather_window(row, column, p.stride_width, p.width) * k.w[r * p.kernel_width + s];
        }
      }
    }
    const int lanes = Q - q < kLanes<float> ? static_cast<int>(Q - q) : kLanes<float>;
    for (int i = 0; i < kRows; ++i) store_lanes<float>(y + i * Q + q, k.act(sums[i]), lanes);
  }
}

typedef void (*RowStripFunction)(const RowKernel& k, int64_t p, float* y);

struct RowStripFunctions {
  RowStripFunction whole;  // kStripRows rows
  RowStripFunction one;
};

template <int kSize, int kStride>
CMF_HOST_DEVICE RowStripFunctions row_strip_functions() {
  return RowStripFunctions{row_strip<kSize, kStride, kStripRows>, row_strip<kSize, kStride, 1>};
}

CMF_HOST_DEVICE RowStripFunctions row_strip_functions(const ConvActPool2dProblem& p) {
  const bool plain = p.dilation_height == 1 && p.dilation_width == 1 &&
                     p.stride_height == p.stride_width && p.kernel_height == p.kernel_width;
  if (plain && p.stride_width == 1) {
    if (p.kernel_width == 3) return row_strip_functions<3, 1>();
    if (p.kernel_width == 5) return row_strip_functions<5, 1>();
    if (p.kernel_width == 7) return row_strip_functions<7, 1>();
  }
  if (plain && p.stride_width == 2) {
    if (p.kernel_width == 3) return row_strip_functions<3, 2>();
    if (p.kernel_width == 5) return row_strip_functions<5, 2>();
    if (p.kernel_width == 7) return row_strip_functions<7, 2>();
  }
  return RowStripFunctions{any_row_strip<kStripRows>, any_row_strip<1>};
}

}  // namespace CMF_ISA
}  // namespace cmf

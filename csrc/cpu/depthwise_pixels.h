// Depthwise convolution of NHWC rows: vectors run over the channels. A tile of output pixels is in
// registers, every tap's weights are read once for all of it, and every input pixel of a row once
// for all the columns it reaches.
#pragma once

#include "cpu/depthwise.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kTileRows = 2;
constexpr int kTileColumns = 4;

// What stays the same for a whole call.
struct PixelKernel {
  const ConvActPool2dProblem& p;
  int64_t x_pixel;  // elements from a pixel to the next
  int64_t y_pixel;
  int64_t y_row;
  int64_t filter_step;  // elements from a tap to the next: the channels, rounded up
  QuickActivation act;
  bool past_caches;
};

// One tile: input row and column of its first tap, channels `x`, `y`, `filter` and `bias` point to.
struct PixelTile {
  const float* x;  // the image's first pixel
  const float* filter;
  const float* bias;
  float* y;  // the tile's first pixel
  int64_t h;
  int64_t w;
  int lanes;    // channels that count
  int columns;  // output columns that count
};

// kWidth taps along a row (0: any number and dilation). kEdge: taps may lie beside the image, lanes
// and columns may be short.
template <int kWidth, int kStride, int kRows, bool kEdge>
__attribute__((noinline)) void pixel_tile(const PixelKernel& k, const PixelTile& tile) {
  typedef Vec<float> V;
  const ConvActPool2dProblem& p = k.p;
  const int64_t stride = kWidth ? kStride : p.stride_width;
  const int lanes = kEdge ? tile.lanes : kLanes<float>;
  // columns that lie in the image, counted from the tile's first tap
  const int64_t inside_first = -tile.w;
  const int64_t inside_last = p.width - tile.w;
  const auto pixel = [&](const float* row, int64_t column) __attribute__((always_inline)) {
    if (!kEdge) return load<float>(row + column * k.x_pixel);
    if (column < inside_first || column >= inside_last) return V{};
    return load_lanes<float>(row + column * k.x_pixel, lanes);
  };

  V sums[kRows][kTileColumns];
  const V bias = load<float>(tile.bias);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kTileColumns; ++c) sums[i][c] = bias;
  }
  const float* filter = tile.filter;
  const int64_t width = kWidth ? kWidth : p.kernel_width;
  for (int64_t r = 0; r < p.kernel_height; ++r, filter += width * k.filter_step) {
    V weights[kWidth ? kWidth : 1];
#pragma GCC unroll 16
    for (int s = 0; s < kWidth; ++s) weights[s] = load<float>(filter + s * k.filter_step);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const int64_t h = tile.h + i * p.stride_height + r * p.dilation_height;
      if (h < 0 || h >= p.height) continue;
      const float* row = tile.x + (h * p.width + tile.w) * k.x_pixel;
      if (kWidth) {
#pragma GCC unroll 32
        for (int j = 0; j < (kTileColumns - 1) * kStride + kWidth; ++j) {
          const V value = pixel(row, j);
#pragma GCC unroll 16
          for (int c = 0; c < kTileColumns; ++c) {
            const int s = j - c * kStride;
            if (s >= 0 && s < kWidth) sums[i][c] += value * weights[s];
          }
        }
      } else {
        for (int64_t s = 0; s < width; ++s) {
          const V weight = load<float>(filter + s * k.filter_step);
#pragma GCC unroll 16
          for (int c = 0; c < kTileColumns; ++c) {
            sums[i][c] += weight * pixel(row, c * stride + s * p.dilation_width);
          }
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kTileColumns; ++c) {
      const V value = k.act(sums[i][c]);
      float* target = tile.y + i * k.y_row + c * k.y_pixel;
      if (!kEdge) {
        if (k.past_caches) {
          store_past_caches(target, value);
        } else {
          store<float>(target, value);
        }
      } else if (c < tile.columns) {
        store_lanes<float>(target, value, lanes);
      }
    }
  }
}

typedef void (*PixelTileFunction)(const PixelKernel& k, const PixelTile& tile);

// By [rows - 1][edge].
struct PixelTileFunctions {
  PixelTileFunction by_rows[kTileRows][2];
};

template <int kWidth, int kStride>
CMF_HOST_DEVICE PixelTileFunctions pixel_tile_functions() {
  return PixelTileFunctions{
      {{pixel_tile<kWidth, kStride, 1, kWidth == 0>, pixel_tile<kWidth, kStride, 1, true>},
       {pixel_tile<kWidth, kStride, 2, kWidth == 0>, pixel_tile<kWidth, kStride, 2, true>}}};
}

CMF_HOST_DEVICE PixelTileFunctions pixel_tile_functions(const ConvActPool2dProblem& p) {
  if (p.dilation_width == 1 && p.stride_width == 1) {
    if (p.kernel_width == 3) return pixel_tile_functions<3, 1>();
    if (p.kernel_width == 5) return pixel_tile_functions<5, 1>();
    if (p.kernel_width == 7) return pixel_tile_functions<7, 1>();
  }
  if (p.dilation_width == 1 && p.stride_width == 2) {
    if (p.kernel_width == 3) return pixel_tile_functions<3, 2>();
    if (p.kernel_width == 5) return pixel_tile_functions<5, 2>();
    if (p.kernel_width == 7) return pixel_tile_functions<7, 2>();
  }
  return pixel_tile_functions<0, 0>();
}

// Output rows p_first .. p_first + rows - 1 (rows <= kTileRows) of channels c_first ..
// c_first + channels - 1. `x`: the image; `filter` [R, S][filter_step] and `bias` of channel 0;
// `y`: where the rows' first pixel and channel go. Column by column with all their channels, so
// that both tensors are walked in the order of their addresses.
inline void pixel_rows(const PixelKernel& k, const PixelTileFunctions& tiles, const float* x,
                       const float* filter, const float* bias, int64_t p_first, int rows,
                       int64_t c_first, int64_t channels, float* y) {
  const ConvActPool2dProblem& p = k.p;
  PixelTile tile;
  tile.h = p_first * p.stride_height - p.pad_height;
  const int64_t reach =
      (kTileColumns - 1) * p.stride_width + (p.kernel_width - 1) * p.dilation_width;
  const int64_t Q = p.pool.width;
  for (int64_t q = 0; q < Q; q += kTileColumns) {
    tile.w = q * p.stride_width - p.pad_width;
    tile.columns = Q - q < kTileColumns ? static_cast<int>(Q - q) : kTileColumns;
    const bool beside = tile.columns < kTileColumns || tile.w < 0 || tile.w + reach >= p.width;
    for (int64_t c = 0; c < channels; c += kLanes<float>) {
      const int64_t left = channels - c;
      tile.lanes = left < kLanes<float> ? static_cast<int>(left) : kLanes<float>;
      tile.x = x + c_first + c;
      tile.filter = filter + c_first + c;
      tile.bias = bias + c_first + c;
      tile.y = y + q * k.y_pixel + c;
      tiles.by_rows[rows - 1][beside || tile.lanes < kLanes<float>](k, tile);
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

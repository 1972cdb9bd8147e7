#include "cpu/pointwise_tile.h"

#include <utility>

namespace cmf {
namespace CMF_ISA {
namespace {

template <int kRows, int kVectors, bool kApart>
void pointwise_tile(const PointwiseTile& tile) {
  typedef Vec<float> V;
  constexpr int kV = kLanes<float>;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sums[row][v] =
          tile.row_bias ? broadcast(tile.row_bias[row]) : load<float>(tile.bias + v * kV);
    }
  }
  // what is read and stored at the end comes meanwhile, a few rows at a time
  const int64_t steps = tile.runs * divide_up(tile.channels, int64_t(kV));
  const int64_t rows_at_once = tile.past_caches ? 0 : kRows / most(steps, 1) + 1;
  const float* residual_row = tile.residual;
  const float* y_row = tile.y;
  int64_t rows_left = kRows;
  const float* a = tile.a;
  const float* b = tile.b;
  const float* ahead = tile.ahead;
  const int64_t ahead_advance =
      tile.ahead_advance ? tile.ahead_advance : tile.ahead_count * tile.ahead_step;
  int64_t left = tile.channels;
  const int64_t a_row = kApart ? tile.a_row : kV;
  for (int64_t runs = tile.runs; runs > 0; a += kApart ? kV : kRows * kV) {
    const int64_t lanes = left < kV ? left : kV;
    const float* line = ahead + kLineFloats - 1;
    for (int i = 0; i < tile.ahead_count; ++i, line += tile.ahead_step) {
      __builtin_prefetch(line, 0, 2);
      __builtin_prefetch(line + tile.ahead_pair, 0, 2);
    }
    ahead += ahead_advance;
    for (int64_t i = least(rows_at_once, rows_left); i > 0; --i, --rows_left) {
      if (tile.residual) {
        __builtin_prefetch(residual_row);
        __builtin_prefetch(residual_row + tile.columns - 1);
        residual_row += tile.y_row;
      }
      __builtin_prefetch(y_row, 1);
      __builtin_prefetch(y_row + tile.columns - 1, 1);
      y_row += tile.y_row;
    }
    const auto add_channel = [&](int64_t c) {
      V columns[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) columns[v] = load<float>(b + c * kTileLanes + v * kV);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const V value = broadcast<float>(a[row * a_row + c]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sums[row][v] += value * columns[v];
      }
    };
    if (kUnrolled && lanes == kV) {
#pragma GCC unroll 16
      for (int64_t c = 0; c < kV; ++c) add_channel(c);
    } else {
      for (int64_t c = 0; c < lanes; ++c) add_channel(c);
    }
    b += lanes * kTileLanes;
    left -= lanes;
    if (left == 0) {
      left = tile.channels;
      --runs;
      if (kApart) a += tile.a_skip;
    }
  }
  if (tile.sums) {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sums[row][v] += load<float>(tile.sums + (row * kVectors + v) * kV);
      }
    }
  }
  const bool whole = tile.columns == kVectors * kV;
  if (tile.residual) {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const float* source = tile.residual + row * tile.y_row + v * kV;
        const int64_t lanes = tile.columns - v * kV;
        sums[row][v] += whole || lanes >= kV ? load<float>(source)
                                             : load_partial<float>(source, static_cast<int>(lanes));
      }
    }
  }
  tile.act.each<kRows * kVectors>(&sums[0][0]);
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const V value = sums[row][v];
      float* target = tile.y + row * tile.y_row + v * kV;
      if (tile.past_caches) {
        stream(target, value);
      } else if (whole || tile.columns - v * kV >= kV) {
        store<float>(target, value);
      } else {
        store_partial<float>(target, value, tile.columns - v * kV);
      }
    }
  }
}

// By vectors and rows, each less 1.
template <bool kApart, int... kRows>
struct Kernels {
  static constexpr PointwiseKernel table[2][sizeof...(kRows)] = {
      {pointwise_tile<kRows + 1, 1, kApart>...}, {pointwise_tile<kRows + 1, 2, kApart>...}};
};
template <bool kApart, int... kRows>
PointwiseKernel find(int rows, int vectors, std::integer_sequence<int, kRows...>) {
  return Kernels<kApart, kRows...>::table[vectors - 1][rows - 1];
}

}  // namespace

PointwiseKernel pointwise_kernel_for(int rows, int vectors, bool apart) {
  const std::make_integer_sequence<int, kGemmRows> all;
  return apart ? find<true>(rows, vectors, all) : find<false>(rows, vectors, all);
}

}  // namespace CMF_ISA
}  // namespace cmf

// The weight gradient's inner loop: the sums of a tile of taps by channels in registers, over the
// pixels of some rows.
#pragma once

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kTileTaps = 12;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileVectors = 2;  // 24 of 32 registers are sums
#else
constexpr int kTileVectors = 1;  // 12 of 16
#endif
constexpr int kTileRuns = 4;
constexpr int kTileLanes = kTileVectors * kLanes<float>;

// Up to kTileRuns runs of taps that lie side by side in the input.
struct Tile {
  const float* g;             // of the first pixel
  int64_t g_row;              // floats from one row to the next
  int64_t g_pixel;            // floats from one pixel to the next
  const float* x[kTileRuns];  // of the first pixel: a run's first tap
  int64_t x_row;
  int64_t x_pixel;
  int64_t rows;
  int64_t columns;
  float* sums;  // [runs][taps of a run][kTileLanes]: added to
};

template <int kRuns, int kTaps, int kVectors>
void tile(const Tile& t) {
  Vec<float> sums[kRuns][kTaps][kVectors];
#pragma GCC unroll 4
  for (int a = 0; a < kRuns; ++a) {
#pragma GCC unroll 12
    for (int b = 0; b < kTaps; ++b) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[a][b][v] = Vec<float>{};
    }
  }
  for (int64_t row = 0; row < t.rows; ++row) {
    const float* g = t.g + row * t.g_row;
    const float* x[kRuns];
#pragma GCC unroll 4
    for (int a = 0; a < kRuns; ++a) x[a] = t.x[a] + row * t.x_row;
    for (int64_t i = 0; i < t.columns; ++i) {
      Vec<float> gradient[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) gradient[v] = load<float>(g + v * kLanes<float>);
      g += t.g_pixel;
#pragma GCC unroll 4
      for (int a = 0; a < kRuns; ++a) {
#pragma GCC unroll 12
        for (int b = 0; b < kTaps; ++b) {
          const Vec<float> value = broadcast<float>(x[a][b]);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sums[a][b][v] += value * gradient[v];
        }
        x[a] += t.x_pixel;
      }
    }
  }
  float* target = t.sums;
#pragma GCC unroll 4
  for (int a = 0; a < kRuns; ++a) {
#pragma GCC unroll 12
    for (int b = 0; b < kTaps; ++b) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        float* at = target + v * kLanes<float>;
        store<float>(at, load<float>(at) + sums[a][b][v]);
      }
      target += kTileLanes;
    }
  }
}

// How many runs of that many taps a tile takes.
CMF_HOST_DEVICE int tile_runs(int taps) {
  const int runs = kTileTaps / taps;
  return runs < kTileRuns ? runs : kTileRuns;
}

template <int kTaps, int kVectors>
void tile_of_runs(int runs, const Tile& t) {
  constexpr int kMost = kTileTaps / kTaps < kTileRuns ? kTileTaps / kTaps : kTileRuns;
  if (runs == 1) {
    tile<1, kTaps, kVectors>(t);
  } else if (runs == 2) {
    tile<(kMost >= 2 ? 2 : 1), kTaps, kVectors>(t);
  } else if (runs == 3) {
    tile<(kMost >= 3 ? 3 : 1), kTaps, kVectors>(t);
  } else {
    tile<(kMost >= 4 ? 4 : 1), kTaps, kVectors>(t);
  }
}

// 1 <= taps <= kTileTaps, 1 <= runs <= tile_runs(taps)
template <int kVectors>
void run_tile(int runs, int taps, const Tile& t) {
  switch (taps) {
#define CMF_CASE(kTaps) \
  case kTaps:           \
    return tile_of_runs<kTaps, kVectors>(runs, t);
    CMF_CASE(1)
    CMF_CASE(2)
    CMF_CASE(3)
    CMF_CASE(4)
    CMF_CASE(5)
    CMF_CASE(6)
    CMF_CASE(7)
    CMF_CASE(8)
    CMF_CASE(9)
    CMF_CASE(10)
    CMF_CASE(11)
    CMF_CASE(12)
#undef CMF_CASE
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

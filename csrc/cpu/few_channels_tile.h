// The weight gradient's inner loops: the sums of a tile of taps by channels in registers, over the
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
  // Where a pixel is a window of 2 x 2 whose gradient belongs to one position:
  const int32_t* selectors;  // [rows][columns][kTileLanes]: see select_position
  int64_t x_below;           // floats from a position's input to that of the one below
};

template <int kRuns, int kTaps, int kVectors>
struct TileSums {
  Vec<float> at[kRuns][kTaps][kVectors];

  CMF_HOST_DEVICE void clear() {
#pragma GCC unroll 24
    for (int i = 0; i < kRuns * kTaps * kVectors; ++i) {
      at[i / kVectors / kTaps][i / kVectors % kTaps][i % kVectors] = Vec<float>{};
    }
  }
  CMF_HOST_DEVICE void add_to(float* target) const {
#pragma GCC unroll 24
    for (int i = 0; i < kRuns * kTaps * kVectors; ++i) {
      float* address = target + i / kVectors * kTileLanes + i % kVectors * kLanes<float>;
      store<float>(address, load<float>(address) +
                                at[i / kVectors / kTaps][i / kVectors % kTaps][i % kVectors]);
    }
  }
};

// Every pixel has a gradient.
struct DenseTile {
  template <int kRuns, int kTaps, int kVectors>
  static void run(const Tile& t) {
    TileSums<kRuns, kTaps, kVectors> sums;
    sums.clear();
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
            for (int v = 0; v < kVectors; ++v) sums.at[a][b][v] += value * gradient[v];
          }
          x[a] += t.x_pixel;
        }
      }
    }
    sums.add_to(t.sums);
  }
};

#if defined(__AVX512F__)
// Windows of 2 x 2: each channel takes its input from the position that it chose, by a permute of
// the two vectors that begin at a run's first tap, in the upper and in the lower position's row.
#define CMF_SPARSE_TILE
constexpr int kTableLanes = kLanes<float>;

// The selector of a position's first tap.
CMF_HOST_DEVICE Mask<float> select_position(Mask<float> code, int column) {
  return (code & 2) * (kTableLanes / 2) + ((-(code & 1)) & column);
}

// Whether a run's taps at both positions of a row are in one vector.
inline bool fits_table(int64_t taps, int64_t column) { return taps + column <= kTableLanes; }

struct SparseTile {
  template <int kRuns, int kTaps, int kVectors>
  static void run(const Tile& t) {
    TileSums<kRuns, kTaps, kVectors> sums;
    sums.clear();
    for (int64_t row = 0; row < t.rows; ++row) {
      const float* g = t.g + row * t.g_row;
      const int32_t* selectors = t.selectors + row * t.columns * kTileLanes;
      const float* x[kRuns];
#pragma GCC unroll 4
      for (int a = 0; a < kRuns; ++a) x[a] = t.x[a] + row * t.x_row;
      for (int64_t i = 0; i < t.columns; ++i) {
        Vec<float> gradient[kVectors];
        __m512i selector[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          gradient[v] = load<float>(g + v * kLanes<float>);
          selector[v] = _mm512_loadu_si512(selectors + v * kLanes<float>);
        }
        g += t.g_pixel;
        selectors += kTileLanes;
#pragma GCC unroll 4
        for (int a = 0; a < kRuns; ++a) {
          const __m512 upper = _mm512_loadu_ps(x[a]), lower = _mm512_loadu_ps(x[a] + t.x_below);
#pragma GCC unroll 12
          for (int b = 0; b < kTaps; ++b) {
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
              const __m512i at = _mm512_add_epi32(selector[v], _mm512_set1_epi32(b));
              const __m512 value = _mm512_permutex2var_ps(upper, at, lower);
              sums.at[a][b][v] += bit_cast<Vec<float>>(value) * gradient[v];
            }
          }
          x[a] += t.x_pixel;
        }
      }
    }
    sums.add_to(t.sums);
  }
};
#endif

// How many runs of that many taps a tile takes.
CMF_HOST_DEVICE int tile_runs(int taps) {
  const int runs = kTileTaps / taps;
  return runs < kTileRuns ? runs : kTileRuns;
}

template <class Kind, int kTaps, int kVectors>
void tile_of_runs(int runs, const Tile& t) {
  constexpr int kMost = kTileTaps / kTaps < kTileRuns ? kTileTaps / kTaps : kTileRuns;
  if (runs == 1) {
    Kind::template run<1, kTaps, kVectors>(t);
  } else if (runs == 2) {
    Kind::template run<(kMost >= 2 ? 2 : 1), kTaps, kVectors>(t);
  } else if (runs == 3) {
    Kind::template run<(kMost >= 3 ? 3 : 1), kTaps, kVectors>(t);
  } else {
    Kind::template run<(kMost >= 4 ? 4 : 1), kTaps, kVectors>(t);
  }
}

// 1 <= taps <= kTileTaps, 1 <= runs <= tile_runs(taps)
template <class Kind, int kVectors>
void run_tile(int runs, int taps, const Tile& t) {
  switch (taps) {
#define CMF_CASE(kTaps) \
  case kTaps:           \
    return tile_of_runs<Kind, kTaps, kVectors>(runs, t);
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

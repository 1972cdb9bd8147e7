// The inner product of every weight gradient: a few rows (input channels) by two vectors of columns
// (output channels), summed over pixels or tiles, all sums in registers.
#pragma once

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

// Rows of one product: as many as a vector of A holds, or half of it.
#if defined(__AVX512F__)
constexpr int kGradientRows = 8;  // 16 sums of 32 registers
#else
constexpr int kGradientRows = 4;  // 8 of 16
#endif
constexpr int kGradientVectors = 2;

// Where a panel's tiles lie: they come in chunks, each [panel][tile of the chunk][lane].
struct TileChunks {
  int count;
  const int64_t* first;  // [count + 1]: a chunk's first tile
};
struct TilePanel {
  const float* data;  // of the first tile, chunk and panel, and the lane where rows begin
  int64_t panels;     // in a chunk
  int64_t panel;
  int64_t next;  // panels from here to the one that comes next
};

// target [kRows][kGradientVectors * kLanes] = (kAdd: +=) sum over tiles of A [tile][row] times
// B [tile][kVectors * kLanes], whose second vector lies in the next panel.
template <int kRows, int kVectors, bool kAdd>
void gradient_tile(const TilePanel& a, const TilePanel& b, const TileChunks& chunks,
                   float* target) {
  typedef Vec<float> V;
  constexpr int kV = kLanes<float>;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sums[row][v] = V{};
  }
  if (kAdd) {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        __builtin_prefetch(target + (row * kGradientVectors + v) * kV, 1);
      }
    }
  }
  for (int chunk = 0; chunk < chunks.count; ++chunk) {
    const int64_t first = chunks.first[chunk];
    const int64_t size = chunks.first[chunk + 1] - first;
    const float* rows = a.data + (first * a.panels + a.panel * size) * kV;
    const float* columns = b.data + (first * b.panels + b.panel * size) * kV;
    const int64_t step = size * kV;
    const float* ahead = rows + a.next * step;
    const float* ahead_columns = columns + b.next * step;
    for (int64_t i = 0; i < step; i += kV) {
      __builtin_prefetch(ahead + i);
      __builtin_prefetch(ahead_columns + i);
      if (kVectors > 1) __builtin_prefetch(ahead_columns + step + i);
      V values[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) values[v] = load<float>(columns + v * step + i);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const V value = broadcast<float>(rows[i + row]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sums[row][v] += value * values[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      float* place = target + (row * kGradientVectors + v) * kV;
      store<float>(place, kAdd ? load<float>(place) + sums[row][v] : sums[row][v]);
    }
  }
}

typedef void (*GradientTile)(const TilePanel& a, const TilePanel& b, const TileChunks& chunks,
                             float* target);

// The kernel for 1 <= rows <= kGradientRows and 1 or 2 vectors.
GradientTile gradient_tile_for(int rows, int vectors, bool add);

}  // namespace CMF_ISA
}  // namespace cmf

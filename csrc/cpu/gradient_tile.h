// The inner product of every weight gradient: a few rows (input channels) by two vectors of columns
// (output channels), summed over pixels or tiles, all sums in registers.
#pragma once

#include "cpu/simd.h"
#include "cpu/simd_prefetch.h"

namespace cmf {
namespace CMF_ISA {

// Rows of one product: as many as a vector of A holds, or half of it.
#if defined(__AVX512F__)
constexpr int kGradientRows = 8;  // 16 sums of 32 registers
#else
constexpr int kGradientRows = 4;  // 8 of 16
#endif
constexpr int kGradientVectors = 2;

// Transformed tiles come in chunks: [chunk][frequency][panel][tile of the chunk][lane], a panel
// being a vector of channels.
struct TileChunks {
  int begin;  // the first chunk
  int count;
  const int64_t* first;  // [count + 1]: a chunk's first tile
};

// Where they lie.
struct PanelLayout {
  // Vectors between frequencies: at distances of a power of two, or near one, a tile's frequencies
  // would share a few sets of the cache. (Twice the time of a transform.)
  static constexpr int64_t kPadding = 7;

  int64_t frequencies;
  int64_t panels;  // of a frequency

  // Floats from a frequency to the next in a chunk of `size` tiles.
  int64_t step(int64_t size) const { return (panels * size + kPadding) * kLanes<float>; }
  // Of panel `panel` at frequency f, in chunk `chunk` that begins with tile `first`.
  int64_t at(int64_t chunk, int64_t first, int64_t size, int64_t f, int64_t panel) const {
    const int64_t begin = frequencies * (panels * first + kPadding * chunk);
    return (begin + panel * size) * kLanes<float> + f * step(size);
  }
  int64_t floats(int64_t tiles, int64_t chunks) const {
    return frequencies * (panels * tiles + kPadding * chunks) * kLanes<float>;
  }
};

// One panel of all chunks, and where the one lies that comes next.
struct TilePanel {
  const float* data;
  PanelLayout layout;
  int64_t frequency;
  int64_t panel;
  int64_t frequencies_ahead;
  int64_t panels_ahead;
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
    const int64_t index = chunks.begin + chunk;
    const float* rows = a.data + a.layout.at(index, first, size, a.frequency, a.panel);
    const float* columns = b.data + b.layout.at(index, first, size, b.frequency, b.panel);
    const int64_t step = size * kV;
    const float* ahead = rows + a.frequencies_ahead * a.layout.step(size) + a.panels_ahead * step;
    const float* ahead_columns =
        columns + b.frequencies_ahead * b.layout.step(size) + b.panels_ahead * step;
    const auto add_tile = [&](int64_t i) {
      V values[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) values[v] = load<float>(columns + v * step + i);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const V value = broadcast<float>(rows[i + row]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sums[row][v] += value * values[v];
      }
    };
    // a line at a time: one tile or several
    int64_t i = 0;
    for (; i + kLineFloats <= step; i += kLineFloats) {
      __builtin_prefetch(ahead + i);
      __builtin_prefetch(ahead_columns + i);
      if (kVectors > 1) __builtin_prefetch(ahead_columns + step + i);
#pragma GCC unroll 16
      for (int j = 0; j < kLineFloats; j += kV) add_tile(i + j);
    }
    if constexpr (kLineFloats > kV) {
      for (; i < step; i += kV) add_tile(i);
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

// Windows of 2 x 2 of a 3 x 3 convolution at stride 1 by Winograd's F(2x2, 3x3) (Lavin and Gray,
// arXiv 1509.09308): a window is one tile. 16 products instead of 36, and additions, which run
// beside them.
//
// With A = (1 0, 1 1, 1 -1, 0 -1), rows by frequency, and B, G as that paper has them:
// y = Aᵀ [sum over channels of (G w Gᵀ) * (Bᵀ x B)] A.
#pragma once

#include "cpu/few_channels_block.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kFrequencies = 16;
constexpr int kTilesTogether = kLanes<float>;  // whose inputs are transformed at once
constexpr int kLeastWinograd = 2;  // with one channel the additions outweigh what is saved
constexpr int kMostWinograd = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBlockTiles = 2;  // of two vectors: 16 of 32 registers are sums
#else
constexpr int kBlockTiles = 1;
#endif
template <int kVectors>
constexpr int kTilesOf = kBlockTiles * kBlockVectors / kVectors;

// Whether a transform of these weights is finite.
inline bool transforms_finite(const float* w, int64_t count) {
  constexpr float kLargest = 0x1p120f;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= w[i] >= -kLargest && w[i] <= kLargest;
  return finite;
}

// w [3][3] -> target[frequency · step].
inline void transform_filter(const float* w, float* target, int64_t step) {
  double half[4][3];
  for (int s = 0; s < 3; ++s) {
    const double a = w[s], b = w[3 + s], c = w[6 + s];
    half[0][s] = a, half[1][s] = (a + b + c) / 2, half[2][s] = (a - b + c) / 2, half[3][s] = c;
  }
  for (int i = 0; i < 4; ++i) {
    const double a = half[i][0], b = half[i][1], c = half[i][2];
    const double whole[4] = {a, (a + b + c) / 2, (a - b + c) / 2, c};
    for (int j = 0; j < 4; ++j) target[(4 * i + j) * step] = static_cast<float>(whole[j]);
  }
}

// The inputs of kTilesTogether tiles side by side, one channel: x, 4 rows of 2 kTilesTogether + 2
// values -> target[frequency · step + tile]. Whether all of them are finite, and so is what they
// become.
CMF_HOST_DEVICE bool transform_tiles(const float* x, int64_t row, float* target, int64_t step) {
  Vec<float> half[4][4];
  Vec<float> zero = {};  // 0 times all values: NaN where one is not finite
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    const float* source = x + r * row;
    Vec<float> d0, d1, d2, d3;
    deinterleave<float>(load<float>(source), load<float>(source + kLanes<float>), &d0, &d1);
    deinterleave<float>(load<float>(source + 2), load<float>(source + 2 + kLanes<float>), &d2, &d3);
    // times 8: what would overflow on the way goes the plain way too
    zero += d0 * 8.0f * 0.0f;
    zero += d1 * 8.0f * 0.0f;
    zero += d2 * 8.0f * 0.0f;
    zero += d3 * 8.0f * 0.0f;
    half[r][0] = d0 - d2, half[r][1] = d1 + d2, half[r][2] = d2 - d1, half[r][3] = d1 - d3;
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec<float> a = half[0][j], b = half[1][j], c = half[2][j], d = half[3][j];
    store<float>(target + (0 + j) * step, a - c);
    store<float>(target + (4 + j) * step, b + c);
    store<float>(target + (8 + j) * step, c - b);
    store<float>(target + (12 + j) * step, b - d);
  }
  return !any_nan(zero);
}

// The tiles' inputs [frequency][channel][kTilesTogether], from the block's first tile on, and the
// filters [frequency][channel][vectors].
struct TileInput {
  const float* x;
  const float* w;
  const float* bias;
};

CMF_HOST_DEVICE void keep_in_register(Vec<float>& value) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(value));
#elif defined(__SSE2__)
  asm volatile("" : "+x"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#endif
}

// Maxima of kTilesOf windows, activated; out.count of them are stored.
template <int kChannels, int kVectors, bool kTrack>
void tile_block(const TileInput& in, const BlockOutput& out) {
  constexpr int kTiles = kTilesOf<kVectors>;
  const float *x = in.x, *weights = in.w;
  // [a][b]: the window's element in row a and column b
  Vec<float> y[2][2][kTiles][kVectors];
#pragma GCC unroll 4
  for (int e = 0; e < 4; ++e) {
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        y[e / 2][e % 2][t][v] = load<float>(in.bias + v * kLanes<float>);
      }
    }
  }
#pragma GCC unroll 16
  for (int f = 0; f < kFrequencies; ++f) {
    Vec<float> m[kTiles][kVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) {
      const int at = f * kChannels + c;
      Vec<float> w[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        w[v] = load<float>(weights + (at * kVectors + v) * kLanes<float>);
        keep_in_register(w[v]);  // else GCC loads it for each tile
      }
#pragma GCC unroll 4
      for (int t = 0; t < kTiles; ++t) {
        const Vec<float> value = broadcast<float>(x[at * kTilesTogether + t]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          if (c == 0) {
            m[t][v] = value * w[v];
          } else {
            m[t][v] += value * w[v];
          }
        }
      }
    }
    // else GCC loads the next frequencies' inputs early, and spills
    asm volatile("" ::: "memory");
    constexpr int kSigns[4][2] = {{1, 0}, {1, 1}, {1, -1}, {0, -1}};
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
      const int sign = kSigns[f / 4][e / 2] * kSigns[f % 4][e % 2];
#pragma GCC unroll 4
      for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          if (sign > 0) y[e / 2][e % 2][t][v] += m[t][v];
          if (sign < 0) y[e / 2][e % 2][t][v] -= m[t][v];
        }
      }
    }
  }
  // else GCC moves a tile's arithmetic behind the test whether it is stored, and spills its inputs
#pragma GCC unroll 16
  for (int i = 0; i < 4 * kTiles * kVectors; ++i) {
    keep_in_register(y[i % 4 / 2][i % 2][i / 4 / kVectors][i / 4 % kVectors]);
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTiles; ++t) {
    if (t >= out.count) break;
    Vec<float> value[kVectors];
    Mask<float> code[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const WindowMaximum maximum =
          window_maximum<kTrack>(y[0][0][t][v], y[0][1][t][v], y[1][0][t][v], y[1][1][t][v]);
      value[v] = maximum.value;
      code[v] = maximum.code;
    }
    activate_values<kVectors>(out.activation, out.param, value);
    store_output<kVectors>(out, t, value);
    if (kTrack) store_codes<kVectors>(out, t, code);
  }
}

template <int kVectors, bool kTrack>
void tile_block_of(int64_t channels, const TileInput& in, const BlockOutput& out) {
  if (channels == 2) {
    tile_block<2, kVectors, kTrack>(in, out);
  } else if (channels == 3) {
    tile_block<3, kVectors, kTrack>(in, out);
  } else {
    tile_block<4, kVectors, kTrack>(in, out);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

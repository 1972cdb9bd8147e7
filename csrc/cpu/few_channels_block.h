// The inner loops: a block of convolution outputs in registers, and the maxima of its windows.
#pragma once

#include "common/activation.h"
#include "common/pool_reduce.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

// A block is some outputs of up to kBlockVectors vectors of channels, all in registers: kWindowRows
// x kWindowColumns for windows of 2 x 2, kLineLeast to kLineMost of a row else.
constexpr int kBlockVectors = 2;
constexpr int kWindowRows = 2;
#if defined(__AVX512F__) || defined(__aarch64__)
template <int kVectors>
constexpr int kWindowColumns = 6;  // up to 24 of 32 registers are sums
constexpr int kLineLeast = 10;
constexpr int kLineMost = 14;
#else
template <int kVectors>
constexpr int kWindowColumns = 4 / kVectors;  // 8 of 16: fewer would wait for their last products
constexpr int kLineLeast = 4;
constexpr int kLineMost = 6;
#endif
template <int kVectors>
constexpr int kBlockWindows = kWindowColumns<kVectors> / 2;
constexpr int kBlockLanes = kBlockVectors * kLanes<float>;

// Where a block's inputs lie.
struct BlockInput {
  const float* x;       // of the first output
  int64_t row;          // floats from one of its rows to the next
  int64_t column;       // floats from one of its outputs to the next
  const int32_t* taps;  // [count] floats from an output's first input to that of a tap
  int64_t count;
  const float* weights;  // [count][vectors]
  const float* bias;     // [vectors]
  bool moderate;         // all of these, so that no output is NaN
};

template <int kRows, int kColumns, int kVectors>
struct BlockSums {
  Vec<float> at[kRows][kColumns][kVectors];
};

// The sums start at the bias: it costs nothing there.
template <int kRows, int kColumns, int kVectors>
CMF_HOST_DEVICE void multiply_block(const BlockInput& in,
                                    BlockSums<kRows, kColumns, kVectors>& sums) {
#pragma GCC unroll 2
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 14
    for (int j = 0; j < kColumns; ++j) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sums.at[i][j][v] = load<float>(in.bias + v * kLanes<float>);
      }
    }
  }
  const float* weights = in.weights;
  const int64_t column = in.column;
#if defined(__AVX2__) && !defined(__AVX512F__)
  // An address of each output, to which a tap's offset is an index: GCC would add them up for each
  // tap, as many instructions as there are inputs.
  const float* x[kRows][kColumns];
#pragma GCC unroll 2
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 6
    for (int j = 0; j < kColumns; ++j) {
      x[i][j] = in.x + i * in.row + j * column;
      asm("" : "+r"(x[i][j]));
    }
  }
#endif
  for (int64_t t = 0; t < in.count; ++t) {
    Vec<float> w[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) w[v] = load<float>(weights + v * kLanes<float>);
    weights += kVectors * kLanes<float>;
#pragma GCC unroll 14
    for (int j = 0; j < kColumns; ++j) {
#pragma GCC unroll 2
      for (int i = 0; i < kRows; ++i) {
#if defined(__AVX2__) && !defined(__AVX512F__)
        const Vec<float> value = broadcast<float>(x[i][j][in.taps[t]]);
#else
        const Vec<float> value = broadcast<float>(in.x[in.taps[t] + i * in.row + j * column]);
#endif
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums.at[i][j][v] += value * w[v];
      }
    }
  }
}

// Whether any output of the block is NaN.
template <int kRows, int kColumns, int kVectors>
CMF_HOST_DEVICE bool any_nan(const BlockSums<kRows, kColumns, kVectors>& sums) {
#if defined(__AVX512F__)
  __mmask16 nan = 0;
#else
  Mask<float> nan = {};
#endif
#pragma GCC unroll 14
  for (int i = 0; i < kRows * kColumns; i += 2) {
    // in pairs, the last one with itself where their number is odd
    const int other = i + 1 < kRows * kColumns ? i + 1 : i;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Vec<float> a = sums.at[i / kColumns][i % kColumns][v];
      const Vec<float> b = sums.at[other / kColumns][other % kColumns][v];
#if defined(__AVX512F__)
      nan |= _mm512_cmp_ps_mask(bit_cast<__m512>(a), bit_cast<__m512>(b), _CMP_UNORD_Q);
#else
      nan |= is_nan(a) | is_nan(b);
#endif
    }
  }
#if defined(__AVX512F__)
  return nan != 0;
#else
  return any_nan(bit_cast<Vec<float> >(nan));
#endif
}

struct WindowMaximum {
  Vec<float> value;
  Mask<float> code;
};

// Of a window's elements in row order, none of them NaN. The first of equals wins.
template <bool kTrack>
CMF_HOST_DEVICE WindowMaximum window_maximum(Vec<float> a, Vec<float> b, Vec<float> c,
                                             Vec<float> d) {
  const auto right = b > a, lower_right = d > c;
  const Vec<float> upper = right ? b : a, lower = lower_right ? d : c;
  const auto below = lower > upper;
  WindowMaximum maximum = {};
  maximum.value = below ? lower : upper;
  if (kTrack) {
    const Mask<float> zero = {};
    const Mask<float> code_upper = right ? zero + 1 : zero;
    const Mask<float> code_lower = lower_right ? zero + 3 : zero + 2;
    maximum.code = below ? code_lower : code_upper;
  }
  return maximum;
}

// The same, where NaN wins, as in pool_reduce.h.
template <bool kTrack>
__attribute__((noinline, cold)) WindowMaximum window_maximum_or_nan(Vec<float> a, Vec<float> b,
                                                                    Vec<float> c, Vec<float> d) {
  MaxReducer<float, Vec<float>, Mask<float>, true> reducer(MaskRule<float>{0, false});
  reducer.begin(a, 0);
  reducer.add(b, 1);
  reducer.add(c, 2);
  reducer.add(d, 3);
  return {reducer.value, reducer.code};
}

template <int kVectors>
using WindowSums = BlockSums<kWindowRows, kWindowColumns<kVectors>, kVectors>;

// The maxima of the block's windows of 2 x 2, and their positions where kTrack.
template <int kVectors, bool kTrack>
struct BlockMaxima {
  Vec<float> value[kBlockWindows<kVectors>][kVectors];
  Mask<float> code[kBlockWindows<kVectors>][kVectors];

  // Without regard to NaN.
  CMF_HOST_DEVICE void reduce(const WindowSums<kVectors>& sums) {
#pragma GCC unroll 3
    for (int q = 0; q < kBlockWindows<kVectors>; ++q) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const WindowMaximum maximum =
            window_maximum<kTrack>(sums.at[0][2 * q][v], sums.at[0][2 * q + 1][v],
                                   sums.at[1][2 * q][v], sums.at[1][2 * q + 1][v]);
        value[q][v] = maximum.value;
        code[q][v] = maximum.code;
      }
    }
  }
};

// NaN wins.
template <int kVectors, bool kTrack>
__attribute__((noinline, cold)) void reduce_nan(const WindowSums<kVectors>& sums,
                                                BlockMaxima<kVectors, kTrack>& maxima) {
  for (int q = 0; q < kBlockWindows<kVectors>; ++q) {
    for (int v = 0; v < kVectors; ++v) {
      const WindowMaximum maximum =
          window_maximum_or_nan<kTrack>(sums.at[0][2 * q][v], sums.at[0][2 * q + 1][v],
                                        sums.at[1][2 * q][v], sums.at[1][2 * q + 1][v]);
      maxima.value[q][v] = maximum.value;
      maxima.code[q][v] = maximum.code;
    }
  }
}

// Where a block's values go.
struct BlockOutput {
  float* y;               // of the first output
  uint8_t* codes;         // as y, or null
  int64_t pixel;          // floats (and bytes of codes) from one output to the next
  int count;              // outputs that are stored
  int last_lanes;         // channels that are stored of an output's last vector
  Activation activation;  // kIdentity, kRelu or kLeakyRelu
  float param;
  bool stream;  // whole aligned vectors, past the caches
};

template <int kVectors>
CMF_HOST_DEVICE void store_output(const BlockOutput& out, int i, const Vec<float>* values) {
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    float* target = out.y + i * out.pixel + v * kLanes<float>;
    if (out.stream) {
      stream(target, values[v]);
    } else {
      store_lanes<float>(target, values[v], v + 1 < kVectors ? kLanes<float> : out.last_lanes);
    }
  }
}

template <int kVectors>
CMF_HOST_DEVICE void store_codes(const BlockOutput& out, int i, const Mask<float>* codes) {
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    uint8_t* target = out.codes + i * out.pixel + v * kLanes<float>;
    if (v + 1 < kVectors || out.last_lanes == kLanes<float>) {
      store_bytes<float>(target, codes[v]);
    } else {
      store_bytes_partial<float>(target, codes[v], out.last_lanes);
    }
  }
}

template <int kVectors>
CMF_HOST_DEVICE void activate_values(Activation activation, float param, Vec<float>* values) {
  if (activation == Activation::kRelu) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) values[v] = activate<Activation::kRelu>(values[v], param);
  } else if (activation == Activation::kLeakyRelu) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      values[v] = activate<Activation::kLeakyRelu>(values[v], param);
    }
  }
}

// The maxima of kBlockWindows<kVectors> windows side by side, activated; out.count of them are
// stored.
template <int kVectors, bool kTrack>
void window_block(const BlockInput& in, const BlockOutput& output) {
  const BlockOutput out = output;  // what is stored could otherwise change it
  WindowSums<kVectors> sums;
  multiply_block(in, sums);
  BlockMaxima<kVectors, kTrack> maxima;
  if (__builtin_expect(!in.moderate && any_nan(sums), 0)) {
    const WindowSums<kVectors> copy =
        sums;  // whose address leaves, so that those of `sums` need not
    BlockMaxima<kVectors, kTrack> result;
    reduce_nan(copy, result);
    maxima = result;
  } else {
    maxima.reduce(sums);
  }
#pragma GCC unroll 3
  for (int q = 0; q < kBlockWindows<kVectors>; ++q) {
    if (q >= out.count) break;
    activate_values<kVectors>(out.activation, out.param, maxima.value[q]);
    store_output<kVectors>(out, q, maxima.value[q]);
    if (kTrack) store_codes<kVectors>(out, q, maxima.code[q]);
  }
}

// kColumns outputs of a row, activated; out.count of them are stored. Whether any is NaN.
template <int kColumns, int kVectors>
bool line_block(const BlockInput& in, const BlockOutput& output) {
  const BlockOutput out = output;
  BlockSums<1, kColumns, kVectors> sums;
  multiply_block(in, sums);
  const bool nan = !in.moderate && any_nan(sums);
#pragma GCC unroll 14
  for (int j = 0; j < kColumns; ++j) {
    if (j >= out.count) break;
    activate_values<kVectors>(out.activation, out.param, sums.at[0][j]);
    store_output<kVectors>(out, j, sums.at[0][j]);
  }
  return nan;
}

// Calls of line_block by the number of outputs, kLineLeast to kLineMost.
template <int kVectors>
bool line_block_of(int columns, const BlockInput& in, const BlockOutput& out) {
  switch (kLineMost - columns) {
    case 0:
      return line_block<kLineMost, kVectors>(in, out);
    case 1:
      return line_block<kLineMost - 1, kVectors>(in, out);
    case 2:
      return line_block<kLineMost - 2, kVectors>(in, out);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3:
      return line_block<kLineMost - 3, kVectors>(in, out);
    case 4:
      return line_block<kLineMost - 4, kVectors>(in, out);
#endif
  }
  return false;
}

// The number of outputs whose blocks cover `count` with the least work, and of those the largest. A
// block's beginning and end take about as long as an output.
inline int line_columns(int64_t count) {
  int best = kLineMost;
  int64_t least_work = INT64_MAX;
  for (int columns = kLineMost; columns >= kLineLeast; --columns) {
    const int64_t work = (count + columns - 1) / columns * (columns + 1);
    if (work < least_work) least_work = work, best = columns;
  }
  return best;
}

}  // namespace CMF_ISA
}  // namespace cmf

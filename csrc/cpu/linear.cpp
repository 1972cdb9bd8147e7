// Fully connected layers of few rows: bound by reading the weights, which are read once and in
// place, several rows of them at a time against all rows of x.
#include "cpu/linear.h"

#include "cpu/parts.h"
#include "cpu/simd.h"
#include "cpu/simd_sums.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;
constexpr int kWeightRows = 4;
// Rows of x whose sums are in registers beside those of weights.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif
// Inputs that are summed from zero before they are added (long sums round more), while the weights
// stay in the first cache for the next rows of x.
constexpr int64_t kChunk = 1024;
constexpr int64_t kAhead = 512;  // inputs that are prefetched: the hardware stops at each page
constexpr int64_t kLeastPerThread = 1 << 16;  // products

// sums[row][k] += x · w over `count` inputs, for `rows` <= kCount rows of x.
template <int kCount, bool kPrefetch>
void add_products(const float* x, int64_t x_row, const float* const (&w)[kWeightRows],
                  int64_t count, V (*sums)[kWeightRows]) {
  V part[kCount][kWeightRows] = {};
  int64_t c = 0;
  for (; c + kV <= count; c += kV) {
    V weights[kWeightRows];
#pragma GCC unroll 4
    for (int k = 0; k < kWeightRows; ++k) {
      if constexpr (kPrefetch) __builtin_prefetch(w[k] + c + kAhead, 0, 3);
      weights[k] = load<float>(w[k] + c);
    }
#pragma GCC unroll 4
    for (int row = 0; row < kCount; ++row) {
      const V value = load<float>(x + row * x_row + c);
#pragma GCC unroll 4
      for (int k = 0; k < kWeightRows; ++k) part[row][k] += value * weights[k];
    }
  }
  if (c < count) {
    const int lanes = static_cast<int>(count - c);
    for (int row = 0; row < kCount; ++row) {
      const V value = load_partial<float>(x + row * x_row + c, lanes);
      for (int k = 0; k < kWeightRows; ++k) {
        part[row][k] += value * load_partial<float>(w[k] + c, lanes);
      }
    }
  }
  for (int row = 0; row < kCount; ++row) {
    for (int k = 0; k < kWeightRows; ++k) sums[row][k] += part[row][k];
  }
}

template <bool kPrefetch>
void add_rows(const float* x, int64_t x_row, int rows, const float* const (&w)[kWeightRows],
              int64_t count, V (*sums)[kWeightRows]) {
  if constexpr (kRows == 4) {
    if (rows == 4) return add_products<4, kPrefetch>(x, x_row, w, count, sums);
    if (rows == 3) return add_products<3, kPrefetch>(x, x_row, w, count, sums);
  }
  if (rows == 2) return add_products<2, kPrefetch>(x, x_row, w, count, sums);
  add_products<1, kPrefetch>(x, x_row, w, count, sums);
}

// Outputs k .. k + kWeightRows - 1, of which `count` exist.
void group(const LinearProblem& p, const float* x, const float* w, const float* bias, float* y,
           int64_t k, int count) {
  V sums[kMostLinearRows][kWeightRows];
  const int64_t count_of_sums = round_up(p.rows * kWeightRows, kV);  // of whole blocks
  for (int64_t i = 0; i < count_of_sums; ++i) sums[i / kWeightRows][i % kWeightRows] = V{};
  for (int64_t c = 0; c < p.inputs; c += kChunk) {
    const float* rows_of_w[kWeightRows];
    for (int i = 0; i < kWeightRows; ++i) {
      rows_of_w[i] = w + (k + (i < count ? i : 0)) * p.inputs + c;
    }
    const int64_t inputs = least(p.inputs - c, kChunk);
    for (int64_t row = 0; row < p.rows; row += kRows) {
      const int rows = static_cast<int>(least(p.rows - row, kRows));
      const float* source = x + row * p.inputs + c;
      if (row == 0) {
        add_rows<true>(source, p.inputs, rows, rows_of_w, inputs, sums);
      } else {
        add_rows<false>(source, p.inputs, rows, rows_of_w, inputs, sums + row);
      }
    }
  }
  float totals[kMostLinearRows * kWeightRows];
  for (int64_t i = 0; i < count_of_sums; i += kV) {
    V block[kV];
#pragma GCC unroll 16
    for (int j = 0; j < kV; ++j) block[j] = sums[(i + j) / kWeightRows][(i + j) % kWeightRows];
    store<float>(totals + i, sums_of_lanes(block));
  }
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int i = 0; i < count; ++i) {
      const float sum = totals[row * kWeightRows + i];
      y[row * p.outputs + k + i] = bias ? sum + bias[k + i] : sum;
    }
  }
}

}  // namespace

void linear_forward(const LinearProblem& p, const float* x, const float* w, const float* bias,
                    float* y, int threads) {
  const int64_t groups = divide_up(p.outputs, kWeightRows);
  const int64_t parts = most(least(p.outputs * p.inputs / kLeastPerThread, threads), 1);
  in_parallel(groups, static_cast<int>(parts), [&](Range part) {
    for (int64_t i = part.first; i < part.last; ++i) {
      const int64_t k = i * kWeightRows;
      group(p, x, w, bias, y, k, static_cast<int>(least(p.outputs - k, kWeightRows)));
    }
    return true;
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

// The transforms of one tile, vectorised over channels: d -> B^T d B, M -> A^T M A, w -> G w G^T.
//
// Points come in pairs ±p, whose rows differ in the signs of their odd (or even) coefficients
// alone: each pair shares its two half sums.
#pragma once

#include "cpu/simd.h"
#include "cpu/winograd_matrices.h"

#define CMF_UNROLL _Pragma("GCC unroll 16")

namespace cmf {
namespace CMF_ISA {

// v = B^T d
template <class W>
CMF_HOST_DEVICE void transform_data(const Vec<float> (&d)[W::kAlpha], Vec<float> (&v)[W::kAlpha]) {
  constexpr int kAlpha = W::kAlpha;
  constexpr int kPairs = (kAlpha - 1) / 2;
  CMF_UNROLL
  for (int f = 0; f < kAlpha; ++f) {
    if (f < 2 * kPairs && f % 2 == 1) continue;
    Vec<float> sums[2] = {Vec<float>{}, Vec<float>{}};  // of even and odd coefficients
    bool fresh[2] = {true, true};
    CMF_UNROLL
    for (int j = 0; j < kAlpha; ++j) {
      const float factor = W::kMatrices.b[f][j];
      if (factor == 0) continue;
      sums[j % 2] = fresh[j % 2] ? factor * d[j] : sums[j % 2] + factor * d[j];
      fresh[j % 2] = false;
    }
    if (f >= 2 * kPairs) {
      v[f] = fresh[0] ? sums[1] : (fresh[1] ? sums[0] : sums[0] + sums[1]);
    } else {
      // -p: the even sum keeps its sign where 0 is a point, the odd one where not
      v[f] = sums[0] + sums[1];
      v[f + 1] = kAlpha % 2 == 0 ? sums[0] - sums[1] : sums[1] - sums[0];
    }
  }
}

// y = A^T m
template <class W>
CMF_HOST_DEVICE void transform_products(const Vec<float> (&m)[W::kAlpha],
                                        Vec<float> (&y)[W::kOutputs]) {
  constexpr int kAlpha = W::kAlpha;
  constexpr int kPairs = (kAlpha - 1) / 2;
  Vec<float> sums[2][kPairs];  // m(+p) + m(-p), m(+p) - m(-p)
  CMF_UNROLL
  for (int pair = 0; pair < kPairs; ++pair) {
    sums[0][pair] = m[2 * pair] + m[2 * pair + 1];
    sums[1][pair] = m[2 * pair] - m[2 * pair + 1];
  }
  CMF_UNROLL
  for (int i = 0; i < W::kOutputs; ++i) {
    Vec<float> value = W::kMatrices.a[i][0] * sums[i % 2][0];
    CMF_UNROLL
    for (int pair = 1; pair < kPairs; ++pair) {
      value += W::kMatrices.a[i][2 * pair] * sums[i % 2][pair];
    }
    CMF_UNROLL
    for (int f = 2 * kPairs; f < kAlpha; ++f) {
      if (W::kMatrices.a[i][f] != 0) value += W::kMatrices.a[i][f] * m[f];
    }
    y[i] = value;
  }
}

// u = G w
template <class W>
CMF_HOST_DEVICE void transform_taps(const Vec<float> (&w)[W::kTaps], Vec<float> (&u)[W::kAlpha]) {
  constexpr int kAlpha = W::kAlpha;
  constexpr int kPairs = (kAlpha - 1) / 2;
  CMF_UNROLL
  for (int f = 0; f < kAlpha; ++f) {
    if (f < 2 * kPairs && f % 2 == 1) continue;
    Vec<float> sums[2] = {Vec<float>{}, Vec<float>{}};
    CMF_UNROLL
    for (int j = 0; j < W::kTaps; ++j) {
      if (W::kMatrices.g[f][j] != 0) sums[j % 2] += W::kMatrices.g[f][j] * w[j];
    }
    u[f] = sums[0] + sums[1];
    if (f < 2 * kPairs) {
      // p^j changes sign with j; the scale 1 / prod(p - p_g) does where alpha - 1 is even
      u[f + 1] = kAlpha % 2 == 0 ? sums[0] - sums[1] : sums[1] - sums[0];
    }
  }
}

// B^T d B of the tile at `source`; frequency (i, j) goes to v + (i · alpha + j) · step.
template <class W>
CMF_HOST_DEVICE void transform_input_tile(const float* source, int64_t row, int64_t column,
                                          float* v, int64_t step) {
  constexpr int kAlpha = W::kAlpha;
  Vec<float> half[kAlpha][kAlpha];
  CMF_UNROLL
  for (int j = 0; j < kAlpha; ++j) {
    Vec<float> d[kAlpha];
    Vec<float> t[kAlpha];
    CMF_UNROLL
    for (int i = 0; i < kAlpha; ++i) d[i] = load<float>(source + i * row + j * column);
    transform_data<W>(d, t);
    CMF_UNROLL
    for (int i = 0; i < kAlpha; ++i) half[i][j] = t[i];
  }
  CMF_UNROLL
  for (int i = 0; i < kAlpha; ++i) {
    Vec<float> t[kAlpha];
    transform_data<W>(half[i], t);
    CMF_UNROLL
    for (int j = 0; j < kAlpha; ++j) store<float>(v + (i * kAlpha + j) * step, t[j]);
  }
}

// A^T M A; frequency f of M lies at m + f · step.
template <class W>
CMF_HOST_DEVICE void transform_output_tile(const float* m, int64_t step,
                                           Vec<float> (&z)[W::kOutputs][W::kOutputs]) {
  constexpr int kAlpha = W::kAlpha;
  Vec<float> half[W::kOutputs][kAlpha];
  CMF_UNROLL
  for (int j = 0; j < kAlpha; ++j) {
    Vec<float> column[kAlpha];
    Vec<float> t[W::kOutputs];
    CMF_UNROLL
    for (int i = 0; i < kAlpha; ++i) column[i] = load<float>(m + (i * kAlpha + j) * step);
    transform_products<W>(column, t);
    CMF_UNROLL
    for (int i = 0; i < W::kOutputs; ++i) half[i][j] = t[i];
  }
  CMF_UNROLL
  for (int i = 0; i < W::kOutputs; ++i) transform_products<W>(half[i], z[i]);
}

// G w G^T; frequency f goes to u + f · step.
template <class W>
CMF_HOST_DEVICE void transform_weight_tile(const Vec<float> (&w)[W::kTaps][W::kTaps], float* u,
                                           int64_t step) {
  constexpr int kAlpha = W::kAlpha;
  Vec<float> half[kAlpha][W::kTaps];
  CMF_UNROLL
  for (int s = 0; s < W::kTaps; ++s) {
    Vec<float> column[W::kTaps];
    Vec<float> t[kAlpha];
    CMF_UNROLL
    for (int r = 0; r < W::kTaps; ++r) column[r] = w[r][s];
    transform_taps<W>(column, t);
    CMF_UNROLL
    for (int i = 0; i < kAlpha; ++i) half[i][s] = t[i];
  }
  CMF_UNROLL
  for (int i = 0; i < kAlpha; ++i) {
    Vec<float> t[kAlpha];
    transform_taps<W>(half[i], t);
    CMF_UNROLL
    for (int j = 0; j < kAlpha; ++j) store<float>(u + (i * kAlpha + j) * step, t[j]);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

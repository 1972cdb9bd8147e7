// The transforms of gradients of one tile, vectorised over channels: those of winograd_tile.h
// transposed. x -> A x A^T, U -> G^T U G.
#pragma once

#include "cpu/winograd_tile.h"

namespace cmf {
namespace CMF_ISA {

// m = A y
template <class W>
CMF_HOST_DEVICE void spread_outputs(const Vec<float> (&y)[W::kOutputs],
                                    Vec<float> (&m)[W::kAlpha]) {
  constexpr int kAlpha = W::kAlpha;
  constexpr int kPairs = (kAlpha - 1) / 2;
  CMF_UNROLL
  for (int f = 0; f < kAlpha; ++f) {
    if (f < 2 * kPairs && f % 2 == 1) continue;
    Vec<float> sums[2] = {Vec<float>{}, Vec<float>{}};  // of even and odd powers
    bool fresh[2] = {true, true};
    CMF_UNROLL
    for (int i = 0; i < W::kOutputs; ++i) {
      const float factor = W::kMatrices.a[i][f];
      if (factor == 0) continue;
      sums[i % 2] = fresh[i % 2] ? factor * y[i] : sums[i % 2] + factor * y[i];
      fresh[i % 2] = false;
    }
    m[f] = fresh[1] ? sums[0] : (fresh[0] ? sums[1] : sums[0] + sums[1]);
    if (f < 2 * kPairs) m[f + 1] = sums[0] - sums[1];
  }
}

// w = G^T u
template <class W>
CMF_HOST_DEVICE void gather_taps(const Vec<float> (&u)[W::kAlpha], Vec<float> (&w)[W::kTaps]) {
  CMF_UNROLL
  for (int j = 0; j < W::kTaps; ++j) {
    Vec<float> sum = Vec<float>{};
    CMF_UNROLL
    for (int f = 0; f < W::kAlpha; ++f) {
      if (W::kMatrices.g[f][j] != 0) sum += W::kMatrices.g[f][j] * u[f];
    }
    w[j] = sum;
  }
}

// A x A^T; frequency f goes to v + f · step.
template <class W>
CMF_HOST_DEVICE void spread_output_tile(const float* source, int64_t row, int64_t column, float* v,
                                        int64_t step) {
  constexpr int kAlpha = W::kAlpha;
  constexpr int kM = W::kOutputs;
  Vec<float> half[kAlpha][kM];
  CMF_UNROLL
  for (int j = 0; j < kM; ++j) {
    Vec<float> y[kM];
    Vec<float> t[kAlpha];
    CMF_UNROLL
    for (int i = 0; i < kM; ++i) y[i] = load<float>(source + i * row + j * column);
    spread_outputs<W>(y, t);
    CMF_UNROLL
    for (int i = 0; i < kAlpha; ++i) half[i][j] = t[i];
  }
  CMF_UNROLL
  for (int i = 0; i < kAlpha; ++i) {
    Vec<float> t[kAlpha];
    spread_outputs<W>(half[i], t);
    CMF_UNROLL
    for (int j = 0; j < kAlpha; ++j) store<float>(v + (i * kAlpha + j) * step, t[j]);
  }
}

// G^T U G; frequency f of U lies at u + f · step. `skip_row`, `skip_column`: what lies at infinity
// counts as 0.
template <class W>
CMF_HOST_DEVICE void gather_weight_tile(const float* u, int64_t step, bool skip_row,
                                        bool skip_column, Vec<float> (&w)[W::kTaps][W::kTaps]) {
  constexpr int kAlpha = W::kAlpha;
  Vec<float> half[W::kTaps][kAlpha];
  for (int j = 0; j < kAlpha; ++j) {
    Vec<float> column[kAlpha];
    Vec<float> t[W::kTaps];
    for (int i = 0; i < kAlpha; ++i) {
      const bool skipped = (skip_row && i == kAlpha - 1) || (skip_column && j == kAlpha - 1);
      column[i] = skipped ? Vec<float>{} : load<float>(u + (i * kAlpha + j) * step);
    }
    gather_taps<W>(column, t);
    CMF_UNROLL
    for (int r = 0; r < W::kTaps; ++r) half[r][j] = t[r];
  }
  CMF_UNROLL
  for (int r = 0; r < W::kTaps; ++r) gather_taps<W>(half[r], w[r]);
}

}  // namespace CMF_ISA
}  // namespace cmf

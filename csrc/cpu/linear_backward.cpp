// The weight gradient of fully connected layers of few rows: bound by writing it, once and past the
// caches.
#include "cpu/linear.h"
#include "cpu/parts.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;
constexpr int64_t kOutputs = 128;             // rows of dw at a time
constexpr int64_t kPartOfX = 4096;            // values, in the first cache
constexpr int64_t kLeastPerThread = 1 << 16;  // products

// kVectors of dw[k] = dy[:, k]^T x, from input c on.
template <int kVectors, bool kStream>
void weight_vectors(const LinearProblem& p, const float* dy, const float* x, float* dw) {
  V sums[kVectors] = {};
  for (int64_t row = 0; row < p.rows; ++row) {
    const V d = broadcast(dy[row * p.outputs]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[v] += d * load<float>(x + row * p.inputs + v * kV);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    if constexpr (kStream) {
      stream(dw + v * kV, sums[v]);
    } else {
      store<float>(dw + v * kV, sums[v]);
    }
  }
}

// dw[k] of one output, for inputs [first, last).
template <bool kStream>
void weight_row(const LinearProblem& p, const float* dy, const float* x, Range inputs, float* dw) {
  int64_t c = inputs.first;
  for (; c + 8 * kV <= inputs.last; c += 8 * kV) {
    weight_vectors<8, kStream>(p, dy, x + c, dw + c);
  }
  for (; c + kV <= inputs.last; c += kV) weight_vectors<1, kStream>(p, dy, x + c, dw + c);
  if (c == inputs.last) return;
  const int lanes = static_cast<int>(inputs.last - c);
  V sum = {};
  for (int64_t row = 0; row < p.rows; ++row) {
    sum += dy[row * p.outputs] * load_partial<float>(x + row * p.inputs + c, lanes);
  }
  store_partial<float>(dw + c, sum, lanes);
}

// Rows [outputs.first, outputs.last) of dw: a part of x that stays in the first cache at a time.
template <bool kStream>
void weight_rows(const LinearProblem& p, const float* dy, const float* x, Range outputs,
                 float* dw) {
  const int64_t part = kPartOfX / p.rows / kV * kV;
  for (int64_t k = outputs.first; k < outputs.last; k += kOutputs) {
    const int64_t last = least(outputs.last, k + kOutputs);
    for (int64_t c = 0; c < p.inputs; c += part) {
      const Range inputs = {c, least(c + part, p.inputs)};
      for (int64_t j = k; j < last; ++j) {
        weight_row<kStream>(p, dy + j, x, inputs, dw + j * p.inputs);
      }
    }
  }
}

}  // namespace

void linear_weight_gradient(const LinearProblem& p, const float* dy, const float* x, float* dw,
                            int threads) {
  const bool past_caches = p.inputs % kV == 0 && p.inputs * p.outputs * 4 > kLinearPastCaches &&
                           reinterpret_cast<uintptr_t>(dw) % CMF_VECTOR_BYTES == 0;
  const int64_t parts = most(least(p.outputs * p.inputs / kLeastPerThread, threads), 1);
  in_parallel(p.outputs, static_cast<int>(parts), [&](Range part) {
    if (past_caches) {
      weight_rows<true>(p, dy, x, part, dw);
    } else {
      weight_rows<false>(p, dy, x, part, dw);
    }
    if (past_caches) fence_streams();
    return true;
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

// What the host side of the convolution's kernels shares.
#pragma once

#include "cuda/conv.h"
#include "cuda/conv_problem.h"

namespace cmf {
namespace CMF_ISA {

inline Divisor make_divisor(int64_t d) {
  Divisor divisor = {static_cast<uint32_t>(d), 0, 0};
  if (d == 1) return divisor;
  // d <= 2^bits, so m = 2^(31 + bits) / d, rounded up, is too large by less than 2^bits / d; and
  // for n < 2^31 n · m / 2^(31 + bits) by less than 1 / d.
  int bits = 0;
  while ((int64_t{1} << bits) < d) ++bits;
  divisor.shift = static_cast<uint32_t>(bits - 1);
  divisor.multiplier = static_cast<uint32_t>(((uint64_t{1} << (31 + bits)) + d - 1) / d);
  return divisor;
}

Multiply conv_multiply(const ConvActPool2dProblem& problem, bool tf32);

inline bool pooled(const ConvActPool2dProblem& p) { return p.pool.pool != Pool::kNone; }
inline int vector_elements(const ConvActPool2dProblem& p) { return 16 / p.pool.itemsize; }

// How a pooled gradient becomes the convolution's output's.
Expand expand_of(const ConvActPool2dProblem& problem);
// The derivative where a mask's bit is 0.
float slope_of(const ConvActPool2dProblem& problem);
// What every element of the pooled gradient is multiplied by: 1/4 for an average.
inline float factor_of(const ConvActPool2dProblem& p) {
  return p.pool.pool == Pool::kAvg ? 0.25f : 1.0f;
}

}  // namespace CMF_ISA
}  // namespace cmf

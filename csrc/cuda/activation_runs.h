// Activations of a run of values. Which one is the launch's: all threads take the same branch, once
// for N values.
#pragma once

#include "common/act_pool2d_problem.h"
#include "common/activation.h"
#include "cuda/runtime.h"

namespace cmf {
namespace CMF_ISA {

// clang-format off: it formats these lines another way each time
#define CMF_EACH_ACTIVATION(CASE)                                           \
  CASE(kIdentity) CASE(kRelu) CASE(kLeakyRelu) CASE(kRelu6) CASE(kElu)      \
  CASE(kSilu) CASE(kGelu) CASE(kGeluTanh) CASE(kTanh) CASE(kSigmoid)        \
  CASE(kSoftplus) CASE(kHardswish)
// clang-format on

// Inside run_activate and its fellows: f(v) for each of the N values.
template <int N, class F>
__device__ __forceinline__ void for_each_value(F f) {
  CMF_UNROLL(N)
  for (int v = 0; v < N; ++v) f(v);
}

// z = act(z)
template <class C, int N>
__device__ __forceinline__ void activate_run(Activation activation, C param, C (&z)[N]) {
  switch (activation) {
#define CMF_CASE(A)                                                                 \
  case Activation::A:                                                               \
    for_each_value<N>([&](int v) { z[v] = activate<Activation::A>(z[v], param); }); \
    break;
    CMF_EACH_ACTIVATION(CMF_CASE)
#undef CMF_CASE
  }
}

// g = g * act'(z), from what was saved: y or z. Where the gradient needs nothing, g stays.
template <class C, int N>
__device__ __forceinline__ void differentiate_run(Activation activation, Saved saved, C param,
                                                  const C (&value)[N], C (&g)[N]) {
  if (saved == Saved::kOutput) {
    switch (activation) {
#define CMF_CASE(A)                                                                         \
  case Activation::A:                                                                       \
    for_each_value<N>(                                                                      \
        [&](int v) { g[v] = backward_from_output<Activation::A>(g[v], value[v], param); }); \
    break;
      CMF_CASE(kRelu)
      CMF_CASE(kLeakyRelu)
      CMF_CASE(kRelu6)
      CMF_CASE(kElu)
      CMF_CASE(kTanh)
      CMF_CASE(kSigmoid)
      CMF_CASE(kSoftplus)
#undef CMF_CASE
      default:
        break;  // complete_act_pool2d_problem gives no other activation this kind
    }
  } else {
    switch (activation) {
#define CMF_CASE(A)                                                                        \
  case Activation::A:                                                                      \
    for_each_value<N>(                                                                     \
        [&](int v) { g[v] = backward_from_input<Activation::A>(g[v], value[v], param); }); \
    break;
      CMF_EACH_ACTIVATION(CMF_CASE)
#undef CMF_CASE
    }
  }
}

// The same of one value: where a loop over several is not unrolled.
template <class C>
__device__ __forceinline__ C activate(Activation activation, C z, C param) {
  C one[1] = {z};
  activate_run(activation, param, one);
  return one[0];
}

template <class C>
__device__ __forceinline__ C differentiate(Activation activation, Saved saved, C param, C value,
                                           C g) {
  const C values[1] = {value};
  C one[1] = {g};
  differentiate_run(activation, saved, param, values, one);
  return one[0];
}

}  // namespace CMF_ISA
}  // namespace cmf

// The activations by a number that the launch knows: one kernel for all of them. For what runs once
// an element of the result, out of a loop that is not unrolled.
#pragma once

#include "common/activation.h"
#include "cuda/device_math.h"

namespace cmf {
namespace CMF_ISA {

#define CMF_MONOTONE_ACTIVATIONS(CASE) \
  CASE(kIdentity)                      \
  CASE(kRelu) CASE(kLeakyRelu) CASE(kRelu6) CASE(kElu) CASE(kTanh) CASE(kSigmoid) CASE(kSoftplus)
#define CMF_OTHER_ACTIVATIONS(CASE) CASE(kSilu) CASE(kGelu) CASE(kGeluTanh) CASE(kHardswish)

__device__ __forceinline__ float activate(Activation activation, float z, float param) {
  switch (activation) {
#define CMF_CASE(name)   \
  case Activation::name: \
    return activate<Activation::name>(z, param);
    CMF_MONOTONE_ACTIVATIONS(CMF_CASE)
    CMF_OTHER_ACTIVATIONS(CMF_CASE)
#undef CMF_CASE
  }
  return z;
}

// dy · act', from y = act(z): of those whose derivative follows from it.
__device__ __forceinline__ float backward_from_output(Activation activation, float dy, float y,
                                                      float param) {
  switch (activation) {
#define CMF_CASE(name)   \
  case Activation::name: \
    return backward_from_output<Activation::name>(dy, y, param);
    CMF_MONOTONE_ACTIVATIONS(CMF_CASE)
#undef CMF_CASE
    default:
      return dy;
  }
}

// dy · act', from z.
__device__ __forceinline__ float backward_from_input(Activation activation, float dy, float z,
                                                     float param) {
  switch (activation) {
#define CMF_CASE(name)   \
  case Activation::name: \
    return backward_from_input<Activation::name>(dy, z, param);
    CMF_MONOTONE_ACTIVATIONS(CMF_CASE)
    CMF_OTHER_ACTIVATIONS(CMF_CASE)
#undef CMF_CASE
  }
  return dy;
}

#undef CMF_MONOTONE_ACTIVATIONS
#undef CMF_OTHER_ACTIVATIONS

}  // namespace CMF_ISA
}  // namespace cmf

// The sums of several vectors at once: by one transposition, where each alone would take shuffles
// of its own.
#pragma once

#include "cpu/simd.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

// Lane i is the sum of vectors[i]'s lanes; the vectors are used up.
CMF_HOST_DEVICE Vec<float> sums_of_lanes(Vec<float> (&vectors)[kLanes<float>]) {
  transpose_block<float>(vectors);
#pragma GCC unroll 16
  for (int step = kLanes<float> / 2; step > 0; step /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < step; ++i) vectors[i] += vectors[i + step];
  }
  return vectors[0];
}

}  // namespace CMF_ISA
}  // namespace cmf

// The sum over a block's threads, in an order that does not change.
#pragma once

#include "cuda/runtime.h"

namespace cmf {
namespace CMF_ISA {

// Every thread of a block of kThreads, a multiple of 32, calls it; thread 0 gets the sum.
template <int kThreads>
__device__ __forceinline__ double block_sum(double value) {
  constexpr int kWarps = kThreads / 32;
  CMF_SHARED(double[kWarps], sums);
  CMF_UNROLL(5)
  for (int lanes = 16; lanes; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x != 0) return 0;
  value = sums[0];
  for (int warp = 1; warp < kWarps; ++warp) value += sums[warp];
  return value;
}

}  // namespace CMF_ISA
}  // namespace cmf

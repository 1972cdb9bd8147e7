// One tile of a convolution, tap by tap: for the tiles that a Winograd transform can't compute,
// because what is not finite in them would spread.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

// x * w at output (row, column) of image n for one output channel.
float direct_output(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                    int64_t n, int64_t row, int64_t column, int64_t channel);

// z = x * w for kM x kM outputs of a vector of channels.
template <int kM>
__attribute__((noinline)) void direct_tile(const ConvActPool2dProblem& p,
                                           const ConvForwardTensors& tensors, int64_t n,
                                           int64_t row, int64_t column, int64_t channel,
                                           Vec<float> (&z)[kM][kM]) {
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kM; ++j) {
      if (row + i >= p.pool.height || column + j >= p.pool.width) continue;
      for (int lane = 0; lane < kLanes<float> && channel + lane < p.pool.channels; ++lane) {
        z[i][j][lane] = direct_output(p, tensors, n, row + i, column + j, channel + lane);
      }
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

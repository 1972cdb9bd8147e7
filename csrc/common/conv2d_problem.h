// One small convolution: z [N, K, P, Q] = x [N, C, H, W] * w [K, C, R, S], stride 1, no bias.
//
// Read by files of every instruction set, so: plain data, nothing inline.
#pragma once

#include <stdint.h>

namespace cmf {

struct Conv2dProblem {
  int64_t batch;          // N
  int64_t in_channels;    // C
  int64_t height;         // H
  int64_t width;          // W
  int64_t out_channels;   // K
  int64_t kernel_height;  // R
  int64_t kernel_width;   // S
  int64_t pad_height;     // below R: the input gradient is then a convolution of the same kind
  int64_t pad_width;      // below S
  int32_t dtype;          // float32 or float64
  // derived by complete_conv2d_problem
  int64_t out_height;  // P
  int64_t out_width;   // Q
  int32_t itemsize;
};

// Fills the derived fields. Throws std::invalid_argument naming the field that is wrong or too
// large: these kernels are for problems that one thread finishes within microseconds.
void complete_conv2d_problem(Conv2dProblem* problem);

}  // namespace cmf

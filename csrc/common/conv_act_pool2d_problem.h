// One fused call: y [N, K, P, Q] = pool(act(x [N, C, H, W] * w [K, C / groups, R, S] + bias [K])).
//
// Read by files of every instruction set, so: plain data, nothing inline.
#pragma once

#include <stdint.h>

#include "common/act_pool2d_problem.h"

namespace cmf {

struct ConvActPool2dProblem {
  int64_t in_channels;     // C
  int64_t image_channels;  // of an image in memory: C, or more where these are a group's
  int64_t height;          // H
  int64_t width;           // W
  int64_t kernel_height;   // R
  int64_t kernel_width;    // S
  int64_t stride_height;
  int64_t stride_width;
  int64_t pad_height;
  int64_t pad_width;
  int64_t dilation_height;
  int64_t dilation_width;
  int64_t groups;
  bool x_channels_last;  // memory format of x; that of y is pool.channels_last
  // What follows the convolution: its batch is N, its channels are K, its height and width those of
  // the convolution's output z, which never exists as a whole.
  ActPool2dProblem pool;
};

// Checks every field, and that pool.height and pool.width follow from the convolution. Expects
// `pool` completed. Throws std::invalid_argument naming the field that is wrong.
void check_conv_act_pool2d_problem(const ConvActPool2dProblem& problem);

}  // namespace cmf

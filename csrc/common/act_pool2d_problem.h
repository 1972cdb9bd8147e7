// One act_pool2d call: y [N, K, P, Q] = pool(act(x [N, K, H, W] + bias [K])).
//
// Read by files of every instruction set, so: plain data, nothing inline.
#pragma once

#include <stdint.h>

namespace cmf {

enum class Pool : int32_t { kMax = 0, kAvg = 1, kNone = 2 };

// What backward needs beside the gradient.
enum class Saved : int32_t {
  kNothing = 0,
  kOutput = 1,         // y: the derivative follows from it
  kPreactivation = 2,  // x + bias at the position that the maximum chose
  kInput = 3,          // x
  kMask = 4,           // a bit per window element: on which side of its kink the activation was
};

struct ActPool2dProblem {
  int64_t batch;       // N
  int64_t channels;    // K
  int64_t height;      // H
  int64_t width;       // W
  int64_t out_height;  // P
  int64_t out_width;   // Q
  int64_t pool_height;
  int64_t pool_width;
  int64_t pool_stride_height;
  int64_t pool_stride_width;
  int64_t pool_pad_height;
  int64_t pool_pad_width;
  double activation_param;
  int32_t activation;  // cmf::<isa>::Activation
  int32_t dtype;       // cmf::<isa>::DType
  Pool pool;
  bool count_include_pad;
  bool channels_last;
  // derived by complete_act_pool2d_problem
  bool monotone;  // max(act(z)) = act(max(z))
  Saved saved;
  int32_t index_itemsize;  // bytes of an index (or mask) element: 0, 1 or 4
  int32_t itemsize;        // bytes of an element of x
  // Of an image in memory: K, or more where the problem is some of a tensor's channels.
  int64_t image_channels;
};

// Fills the derived fields. Throws std::invalid_argument naming the field that is wrong: a size out
// of range, an output size that does not follow from the input's, a product that overflows.
void complete_act_pool2d_problem(ActPool2dProblem* problem);

// -1 where the name is unknown.
int32_t activation_from_name(const char* name);
int32_t pool_from_name(const char* name);
int32_t dtype_from_name(const char* name);
const char* saved_name(Saved saved);

}  // namespace cmf

// One batch_norm_act call: y [N, C, H, W] = act((x - mean) * invstd * weight + bias), with the mean
// and the biased variance of each channel of x itself: batch normalization as it trains.
//
// Read by files of every instruction set, so: plain data, nothing inline.
#pragma once

#include <stdint.h>

namespace cmf {

struct BatchNormActProblem {
  int64_t batch;     // N
  int64_t channels;  // C
  int64_t plane;     // H·W
  double eps;
  double activation_param;
  int32_t activation;  // cmf::<isa>::Activation
  bool channels_last;
};

// Of each channel, as the forward pass leaves them to the backward pass: rows of a [3, C] array.
enum BatchNormStatistic : int32_t {
  kMean = 0,  // rounded to float32
  kMeanTail =
      1,        // what the rounding left: (x - kMean) - kMeanTail is exact where x is near the mean
  kInvStd = 2,  // 1 / sqrt(variance + eps)
  kBatchNormStatistics = 3,
};

struct BatchNormActForward {
  const float* x;
  const float* weight;  // [C] or null: 1
  const float* bias;    // [C] or null: 0
  float* running_mean;  // [C] or null; both or neither
  float* running_var;   // [C] or null
  double momentum;      // of the running statistics: what the batch counts
  float* y;
  float* statistics;  // [3, C]
};

struct BatchNormActBackward {
  const float* x;
  const float* statistics;
  const float* weight;
  const float* bias;
  const float* dy;
  float* dx;       // or null
  float* dweight;  // [C] or null
  float* dbias;    // [C] or null
};

// Checks sizes and brings them into the one form that the kernels know. Throws
// std::invalid_argument naming the field that is wrong.
void complete_batch_norm_act_problem(BatchNormActProblem* problem);

}  // namespace cmf

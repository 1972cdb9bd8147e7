// A GAN loss: a weighted sum of reduced elementwise functions. Plain data, shared by every
// instruction set, so nothing here is inline.
#pragma once

#include <stdint.h>

namespace cmf {

// The elementwise functions, in the order of their names in gan_loss_function_name.
enum class GanLossFunction : int32_t {
  kLogLossLogits,         // binary cross-entropy of a logit with a constant target
  kLogLossProbabilities,  // the same from a probability
  kLeastSquares,          // (x - label)^2 / 2
  kHinge,                 // max(0, 1 + sign x)
  kLinear,                // x
  kRelativistic,          // softplus(x - y)
  kLogLossLogitsTarget,   // binary cross-entropy with a tensor of targets
  kLogLossProbabilitiesTarget,
  kLogLossLogitsTargetWeight,  // and a tensor of weights
  kLogLossProbabilitiesTargetWeight,
};
constexpr int kGanLossFunctions = 10;

enum class GanLossReduction : int32_t { kNone, kMean, kSum };

struct GanLossTerm {
  int64_t count;     // elements of each of its operands
  double parameter;  // the target, the label or the sign
  double scale;      // what the reduced (or unreduced) function is multiplied by
};

// loss = sum over terms of scale * reduce(function(operands of the term; parameter)). With kNone
// the terms have one count and are added up element by element.
struct GanLossProblem {
  GanLossFunction function;
  GanLossReduction reduction;
  int32_t dtype;       // of operands and gradients: DType's values
  int32_t loss_dtype;  // of the loss and of the gradient that comes back
  int32_t operands;    // tensors a term: 1 to 3
  int32_t term_count;  // at least 1
  const GanLossTerm* terms;
};

// Bits of gan_loss_forward's result.
constexpr int kGanLossBadProbability = 1;  // a probability or its target outside [0, 1]

}  // namespace cmf

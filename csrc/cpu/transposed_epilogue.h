// What follows the sums of a transposed convolution: bias and activation, in registers.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/act_row.h"
#include "cpu/quick_activation.h"

namespace cmf {
namespace CMF_ISA {

class TransposedEpilogue {
 public:
  // `transposed` may be null: a gradient stays as it is.
  explicit TransposedEpilogue(const ConvTransposed* transposed)
      : output_(transposed ? transposed->output : nullptr),
        bias_(transposed ? static_cast<const float*>(transposed->bias) : nullptr),
        quick_(transposed ? quick_activation(*transposed->output) : no_activation()) {}

  bool exists() const { return output_ != nullptr; }
  const ActPool2dProblem& output() const { return *output_; }
  const float* bias() const { return bias_; }
  const QuickActivation& quick() const { return quick_; }

  // `count` vectors of channels first .. first + lanes - 1.
  void apply(Vec<float>* values, int count, int64_t first, int lanes) const {
    if (!output_) return;
    const Vec<float> bias = bias_ ? load_lanes<float>(bias_ + first, lanes) : broadcast(-0.0f);
    if (quick_.kind != QuickActivation::kAfterwards) {
      for (int i = 0; i < count; ++i) values[i] = quick_(values[i] + bias);
      return;
    }
    for (int i = 0; i < count; ++i) {
      float row[kLanes<float>];
      store<float>(row, values[i] + bias);
      activate_row(*output_, row, RowBias<float>{-0.0f, nullptr}, row, kLanes<float>);
      values[i] = load<float>(row);
    }
  }

 private:
  const ActPool2dProblem* output_;
  const float* bias_;
  const QuickActivation quick_;
};

}  // namespace CMF_ISA
}  // namespace cmf

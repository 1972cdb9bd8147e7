// The kernels of 1x1 convolutions, as kernel_table.h lists them.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

const char* pointwise_refusal(const ConvActPool2dProblem& problem, bool backward);
bool pointwise_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                       int threads);
bool pointwise_backward(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                        int threads);
bool pointwise_transforms_weights(const ConvActPool2dProblem& problem, int threads);
bool pointwise_reads_weights(const ConvActPool2dProblem& problem, int threads);
const char* pointwise_residual_refusal(const ConvActPool2dProblem& problem);
int64_t pointwise_prepared_size(const ConvActPool2dProblem& problem);
bool pointwise_prepare(const ConvActPool2dProblem& problem, const void* w, void* prepared,
                       int threads);

}  // namespace CMF_ISA
}  // namespace cmf

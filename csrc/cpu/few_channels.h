// The direct convolution for few input channels, fused with what follows it: the first layer of
// most image networks. As kernel_table.h lists it.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// Why this problem (its backward) is not for this family; null where it is.
const char* few_channels_refusal(const ConvActPool2dProblem& problem, bool backward);

// False where scratch memory could not be had.
bool few_channels_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                          int threads);
bool few_channels_backward(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                           int threads);

}  // namespace CMF_ISA
}  // namespace cmf

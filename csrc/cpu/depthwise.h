// The kernels of depthwise convolutions, as kernel_table.h lists them, and what their files share.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/quick_activation.h"

namespace cmf {
namespace CMF_ISA {

const char* depthwise_refusal(const ConvActPool2dProblem& problem, bool backward);
bool depthwise_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                       int threads);
bool depthwise_backward(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                        int threads);

}  // namespace CMF_ISA
}  // namespace cmf

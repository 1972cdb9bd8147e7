// A 1x1 convolution of a few filters (logits, an image, a map of classes): lanes of filters would
// be idle, and its time is that of reading x. So the lanes are pixels of an NCHW x, or channels of
// an NHWC one, which is read where it is.
#pragma once

#include "common/conv_act_pool2d_kernels.h"

namespace cmf {
namespace CMF_ISA {

constexpr int64_t kMostFewFilters = 4;

bool takes_few_filters(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors);
// False where memory could not be had.
bool few_filters_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                         int threads);

}  // namespace CMF_ISA
}  // namespace cmf

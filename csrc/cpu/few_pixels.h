// A 1x1 convolution of a few images of one pixel (the two of a squeeze and excitation): a fully
// connected layer of few rows, which reads the weights once and where they are.
#pragma once

#include "common/conv_act_pool2d_kernels.h"

namespace cmf {
namespace CMF_ISA {

bool takes_few_pixels(const ConvActPool2dProblem& problem);
// False where memory could not be had.
bool few_pixels_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                        int threads);

}  // namespace CMF_ISA
}  // namespace cmf

// Convolutions of groups that fill vectors, as `patches` has them: without packing each patch.
#pragma once

#include "common/conv_act_pool2d_kernels.h"

namespace cmf {
namespace CMF_ISA {

// Of a problem of several groups; null where it can be taken.
const char* grouped_patches_refusal(const ConvActPool2dProblem& problem);
// `tensors.prepared`: of each group the panels of patch_filters. False where memory could not be
// had.
bool grouped_patches_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                             int threads);

}  // namespace CMF_ISA
}  // namespace cmf

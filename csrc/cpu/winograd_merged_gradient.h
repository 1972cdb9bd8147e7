// dw and dbias of few input channels, in Winograd's transform domain.
#pragma once

#include "common/conv_act_pool2d_kernels.h"

namespace cmf {
namespace CMF_ISA {

// Whether the channels of one phase are so few that most lanes of a vector would be idle, and those
// of all phases few enough for their sums to stay in a cache.
bool winograd_merges_phases(const ConvActPool2dProblem& problem);

// dw and dbias alone: as winograd_backward, where phases are merged.
bool winograd_merged_gradient(const ConvActPool2dProblem& problem,
                              const ConvBackwardTensors& tensors, int threads);

}  // namespace CMF_ISA
}  // namespace cmf

// dx of a convolution with few input channels: products of the output's gradient and the filters,
// added up where their taps lie.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// False where scratch memory could not be had.
bool few_channels_input_gradient(const ConvActPool2dProblem& problem,
                                 const ConvBackwardTensors& tensors, int threads);

// The filters of a transposed convolution, as the products read them.
int64_t few_channels_transposed_size(const ConvActPool2dProblem& problem);
bool few_channels_prepare_transposed(const ConvActPool2dProblem& problem, const void* w,
                                     void* prepared, int threads);

}  // namespace CMF_ISA
}  // namespace cmf

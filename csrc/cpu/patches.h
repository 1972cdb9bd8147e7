// Convolutions whose windows neither overlap nor leave a pixel out, as kernel_table.h lists them:
// their adjoints alone. A transposed convolution makes a patch of its output of each pixel.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

const char* patches_refusal(const ConvActPool2dProblem& problem, bool backward);
bool patches_transposed(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                        int threads);
int64_t patches_transposed_size(const ConvActPool2dProblem& problem);
bool patches_prepare_transposed(const ConvActPool2dProblem& problem, const void* w, void* prepared,
                                int threads);

}  // namespace CMF_ISA
}  // namespace cmf

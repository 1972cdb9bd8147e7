// Convolutions as products of their patches and filters, as kernel_table.h lists them, and the
// adjoints of those whose windows neither overlap nor leave a pixel out: a transposed convolution
// makes a patch of its output of each pixel.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

const char* patches_refusal(const ConvActPool2dProblem& problem, bool backward);
bool patches_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                     int threads);
bool patches_backward(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                      int threads);
int64_t patches_prepared_size(const ConvActPool2dProblem& problem);
bool patches_prepare(const ConvActPool2dProblem& problem, const void* w, void* prepared,
                     int threads);
bool patches_transforms_weights(const ConvActPool2dProblem& problem, int threads);
bool patches_reads_weights(const ConvActPool2dProblem& problem, int threads);
const char* patches_transposed_refusal(const ConvActPool2dProblem& problem);
bool patches_transposed(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                        int threads);
int64_t patches_transposed_size(const ConvActPool2dProblem& problem);
bool patches_prepare_transposed(const ConvActPool2dProblem& problem, const void* w, void* prepared,
                                int threads);

}  // namespace CMF_ISA
}  // namespace cmf

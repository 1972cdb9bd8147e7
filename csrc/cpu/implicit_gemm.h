// Convolution as a product of matrices on a matrix unit, as kernel_table.h lists it.
//
// float32 has no matrix unit on CPUs, bfloat16 has: x = x0 + x1 + x2 and w = w0 + w1 + w2 in
// bfloat16, and x · w = x0·w0 + x0·w1 + x1·w0 + x1·w1 + x0·w2 + x2·w0 up to 2^-24 of it, which is
// float32's own rounding. Products of bfloat16 are exact in float32, where they are summed.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

const char* implicit_gemm_refusal(const ConvActPool2dProblem& problem, bool backward);
bool implicit_gemm_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                           int threads);
int64_t implicit_gemm_prepared_size(const ConvActPool2dProblem& problem);
bool implicit_gemm_prepare(const ConvActPool2dProblem& problem, const void* w, void* prepared,
                           int threads);

}  // namespace CMF_ISA
}  // namespace cmf

// The epilogue on the device: bias, activation and pooling of a convolution's output, and back.
// Knows no type of CUDA's, so that any compiler can read it. `stream` is a cudaStream_t.
#pragma once

#include "common/act_pool2d_problem.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// Throws std::invalid_argument where a plane is larger than the kernels count in 32 bits.
void check_act_pool2d(const ActPool2dProblem& problem);

void act_pool2d_forward(const ActPool2dProblem& problem, const void* x, const void* bias, void* y,
                        void* index, void* preactivation, void* stream);

// Bytes of scratch memory that the bias gradient takes.
int64_t act_pool2d_backward_scratch(const ActPool2dProblem& problem);

// `dx` and `dbias` may be null; `scratch` where dbias is.
void act_pool2d_backward(const ActPool2dProblem& problem, const void* dy, const void* saved,
                         const void* bias, const void* index, void* dx, void* dbias, void* scratch,
                         void* stream);

// For tests: offsets in 64 bits whatever the sizes are.
void set_always_wide(bool wide);

}  // namespace CMF_ISA
}  // namespace cmf

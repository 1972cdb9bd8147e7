// The kernels of small convolutions, as kernel_table.h lists them.
#pragma once

#include "common/conv2d_problem.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// False where scratch memory could not be had.
bool conv2d_small_forward(const Conv2dProblem& problem, const void* x, const void* w, void* z);
bool conv2d_small_backward(const Conv2dProblem& problem, const void* dz, const void* x,
                           const void* w, void* dx, void* dw);

}  // namespace CMF_ISA
}  // namespace cmf

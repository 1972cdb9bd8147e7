// The average of each channel of NHWC images (the squeeze of squeeze and excitation, the end of
// most classifiers).
#pragma once

#include "common/act_pool2d_problem.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// Whether that is what the problem asks for, of float32.
bool is_global_average(const ActPool2dProblem& problem);

// y [N, C], x [N, H, W, C]. False where memory could not be had.
bool global_average(const ActPool2dProblem& problem, const float* x, float* y, int threads);

}  // namespace CMF_ISA
}  // namespace cmf

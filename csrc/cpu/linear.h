#pragma once

#include "common/dtype.h"
#include "common/linear_problem.h"

namespace cmf {
namespace CMF_ISA {

// y [N, K] = x [N, C] w^T + bias, for N up to kMostLinearRows; w [K, C], bias [K] or null.
void linear_forward(const LinearProblem& problem, const float* x, const float* w, const float* bias,
                    float* y, int threads);

// dw [K, C] = dy^T x.
void linear_weight_gradient(const LinearProblem& problem, const float* dy, const float* x,
                            float* dw, int threads);

}  // namespace CMF_ISA
}  // namespace cmf

// Batch normalization in training, with the activation behind it, of float32.
#pragma once

#include "common/batch_norm_act_problem.h"

namespace cmf {
namespace CMF_ISA {

// False where scratch memory could not be had. The same bits for any number of threads.
bool batch_norm_act_forward(const BatchNormActProblem& problem, const BatchNormActForward& call,
                            int threads);
bool batch_norm_act_backward(const BatchNormActProblem& problem, const BatchNormActBackward& call,
                             int threads);

}  // namespace CMF_ISA
}  // namespace cmf

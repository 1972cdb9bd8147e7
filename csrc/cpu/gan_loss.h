// The GAN losses of one instruction set.
#pragma once

#include "common/gan_loss_problem.h"

namespace cmf {
namespace CMF_ISA {

// The loss; where a gradient pointer isn't null, also the gradient for an incoming gradient of 1.
// Operands lie flat, a term after the other; operands that belong to one element lie alike.
// Returns kGanLossBadProbability or 0. The same bits for every thread count.
int gan_loss_forward(const GanLossProblem& problem,
                     const void* const* operands,  // operands * term_count
                     void* const* gradients,       // as many; each may be null, with kNone must
                     void* loss,                   // [] or, with kNone, [count]
                     int threads);

// The gradients for any incoming gradient.
void gan_loss_backward(const GanLossProblem& problem,
                       const void* grad,             // [] or, with kNone, [count], in loss_dtype
                       const void* const* operands,  // operands * term_count
                       void* const* gradients,       // as many, each may be null
                       int threads);

}  // namespace CMF_ISA
}  // namespace cmf

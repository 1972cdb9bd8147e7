// The GAN losses on the device: one launch gives the gradients and the partial sums of the loss,
// another adds those; few elements take one launch alone. Nothing waits for the device.
#pragma once

#include "common/dtype.h"
#include "common/gan_loss_problem.h"

namespace cmf {
namespace CMF_ISA {

// Bytes of scratch memory that gan_loss_forward takes.
int64_t gan_loss_scratch(const GanLossProblem& problem);

// The loss and, where the pointer in `gradients` [terms, operands] is not null, the gradients for
// an incoming gradient of 1. A probability or a target outside [0, 1] makes NaN: asking would make
// the host wait.
void gan_loss_forward(const GanLossProblem& problem, const void* const* operands,
                      void* const* gradients, void* loss, void* scratch, void* stream);

// The gradients for the incoming gradient at `grad`. `skip_one`: they are there for 1 already.
void gan_loss_backward(const GanLossProblem& problem, const void* grad, const void* const* operands,
                       void* const* gradients, bool skip_one, void* stream);

}  // namespace CMF_ISA
}  // namespace cmf

// The kernels of one instruction set, as function pointers.
//
// Shared by files of every instruction set, so: plain declarations, nothing inline.
#pragma once

#include <stdint.h>

#include "common/act_pool2d_problem.h"
#include "common/batch_norm_act_problem.h"
#include "common/conv2d_problem.h"
#include "common/conv_act_pool2d_kernels.h"
#include "common/gan_loss_problem.h"
#include "common/hash.h"
#include "common/linear_problem.h"

namespace cmf {

struct KernelTable {
  const char* isa;
  int vector_bytes;

  // y [N, K, P, Q] = pool(act(x + bias)); index and preactivation where backward will want them.
  // Both are false where scratch memory could not be had.
  bool (*act_pool2d_forward)(const ActPool2dProblem& problem,
                             const void* x,        // [N, K, H, W]
                             const void* bias,     // [K] or null
                             void* y,              // [N, K, P, Q]
                             void* index,          // [N, K, P, Q] or null
                             void* preactivation,  // [N, K, P, Q] or null
                             int threads);

  bool (*act_pool2d_backward)(const ActPool2dProblem& problem,
                              const void* dy,     // [N, K, P, Q]
                              const void* saved,  // what problem.saved names, or null
                              const void* bias,   // [K] or null
                              const void* index,  // [N, K, P, Q] or null
                              void* dx,           // [N, K, H, W] or null
                              void* dbias,        // [K] or null
                              int threads);

  // csrc/cpu/batch_norm_act.h says what these take and give
  bool (*batch_norm_act_forward)(const BatchNormActProblem& problem,
                                 const BatchNormActForward& call, int threads);
  bool (*batch_norm_act_backward)(const BatchNormActProblem& problem,
                                  const BatchNormActBackward& call, int threads);

  // z = x * w; then dx and dw (each may be null) from dz. One thread; false as above.
  bool (*conv2d_small_forward)(const Conv2dProblem& problem,
                               const void* x,  // [N, C, H, W]
                               const void* w,  // [K, C, R, S]
                               void* z);       // [N, K, P, Q]

  bool (*conv2d_small_backward)(const Conv2dProblem& problem,
                                const void* dz,  // [N, K, P, Q]
                                const void* x,   // [N, C, H, W]
                                const void* w,   // [K, C, R, S]
                                void* dx,        // [N, C, H, W] or null
                                void* dw);       // [K, C, R, S] or null

  // the convolutions that are fused with what follows them, by ConvAlgorithm
  ConvKernels conv_act_pool2d[kConvAlgorithms];

  HashBlocks hash_blocks;

  // y [N, K] = x [N, C] w^T + bias, for N up to kMostLinearRows
  void (*linear_forward)(const LinearProblem& problem, const float* x, const float* w,
                         const float* bias, float* y, int threads);

  // dw [K, C] = dy^T x
  void (*linear_weight_gradient)(const LinearProblem& problem, const float* dy, const float* x,
                                 float* dw, int threads);

  // `count` matrices [rows][columns] -> [columns][rows]
  void (*transpose_matrices)(const float* source, float* target, int64_t count, int64_t rows,
                             int64_t columns, int threads);

  // csrc/cpu/gan_loss.h says what these take and give
  int (*gan_loss_forward)(const GanLossProblem& problem, const void* const* operands,
                          void* const* gradients, void* loss, int threads);

  void (*gan_loss_backward)(const GanLossProblem& problem, const void* grad,
                            const void* const* operands, void* const* gradients, int threads);
};

}  // namespace cmf

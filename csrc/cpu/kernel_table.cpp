// Compiled once per instruction set: the table of its kernels.
#include "cpu/kernel_table.h"

#include "cpu/act_pool2d.h"
#include "cpu/band_epilogue.h"
#include "cpu/batch_norm_act.h"
#include "cpu/conv2d_small.h"
#include "cpu/depthwise.h"
#include "cpu/few_channels.h"
#include "cpu/few_channels_input_gradient.h"
#include "cpu/gan_loss.h"
#include "cpu/hash_bytes.h"
#include "cpu/implicit_gemm.h"
#include "cpu/linear.h"
#include "cpu/patches.h"
#include "cpu/pointwise.h"
#include "cpu/simd.h"
#include "cpu/transpose_matrices.h"
#include "cpu/winograd.h"
#include "cpu/winograd_gradient.h"

#define CMF_TEXT(name) #name
#define CMF_NAME(name) CMF_TEXT(name)
#define CMF_JOIN(a, b) a##b
#define CMF_TABLE(isa) CMF_JOIN(kernel_table_, isa)

namespace cmf {

const KernelTable& CMF_TABLE(CMF_ISA)();

const KernelTable& CMF_TABLE(CMF_ISA)() {
  static const KernelTable table = {
      CMF_NAME(CMF_ISA),
      CMF_VECTOR_BYTES,
      CMF_ISA::act_pool2d_forward,
      CMF_ISA::act_pool2d_backward,
      CMF_ISA::batch_norm_act_forward,
      CMF_ISA::batch_norm_act_backward,
      CMF_ISA::conv2d_small_forward,
      CMF_ISA::conv2d_small_backward,
      {
          {CMF_ISA::winograd_refusal, CMF_ISA::winograd_forward, CMF_ISA::winograd_backward,
           CMF_ISA::winograd_prepared_size, CMF_ISA::winograd_prepare, CMF_ISA::winograd_backward,
           CMF_ISA::winograd_transposed_size, CMF_ISA::winograd_prepare_transposed,
           CMF_ISA::winograd_transforms_weights, CMF_ISA::winograd_transposed_refusal,
           CMF_ISA::band_residual_refusal, CMF_ISA::winograd_reads_weights},
          {CMF_ISA::winograd_f6_refusal, CMF_ISA::winograd_f6_forward, nullptr,
           CMF_ISA::winograd_f6_prepared_size, CMF_ISA::winograd_f6_prepare, nullptr, nullptr,
           nullptr, nullptr, nullptr, CMF_ISA::band_residual_refusal},
          {CMF_ISA::few_channels_refusal, CMF_ISA::few_channels_forward,
           CMF_ISA::few_channels_backward, nullptr, nullptr, CMF_ISA::few_channels_backward,
           CMF_ISA::few_channels_transposed_size, CMF_ISA::few_channels_prepare_transposed},
          {CMF_ISA::pointwise_refusal, CMF_ISA::pointwise_forward, CMF_ISA::pointwise_backward,
           CMF_ISA::pointwise_prepared_size, CMF_ISA::pointwise_prepare, nullptr, nullptr, nullptr,
           CMF_ISA::pointwise_transforms_weights, nullptr, CMF_ISA::pointwise_residual_refusal,
           CMF_ISA::pointwise_reads_weights},
          {CMF_ISA::depthwise_refusal, CMF_ISA::depthwise_forward, CMF_ISA::depthwise_backward,
           nullptr, nullptr, nullptr, nullptr, nullptr},  // kDepthwise
          {CMF_ISA::implicit_gemm_refusal, CMF_ISA::implicit_gemm_forward, nullptr,
           CMF_ISA::implicit_gemm_prepared_size, CMF_ISA::implicit_gemm_prepare, nullptr, nullptr,
           nullptr},
          {CMF_ISA::patches_refusal, CMF_ISA::patches_forward, CMF_ISA::patches_backward,
           CMF_ISA::patches_prepared_size, CMF_ISA::patches_prepare, CMF_ISA::patches_transposed,
           CMF_ISA::patches_transposed_size, CMF_ISA::patches_prepare_transposed,
           CMF_ISA::patches_transforms_weights, CMF_ISA::patches_transposed_refusal,
           CMF_ISA::band_residual_refusal, CMF_ISA::patches_reads_weights},
      },
      CMF_ISA::hash_blocks,
      CMF_ISA::linear_forward,
      CMF_ISA::linear_weight_gradient,
      CMF_ISA::transpose_matrices,
      CMF_ISA::gan_loss_forward,
      CMF_ISA::gan_loss_backward,
  };
  return table;
}

}  // namespace cmf

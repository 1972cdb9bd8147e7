// A 1x1 convolution from NCHW to NCHW without a pooling: the filters are rows, panels of pixels
// columns.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/pointwise_pack.h"

namespace cmf {
namespace CMF_ISA {

// Of a problem that `filters_are_rows` of. `tensors.prepared`: as pack_weights packs them, or null:
// then w and w_scale are read. False where memory could not be had.
bool filter_rows_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                         const PointwiseInput& input, int threads);
// As ConvKernels::reads_weights.
bool filter_rows_read_weights(const ConvActPool2dProblem& problem);

}  // namespace CMF_ISA
}  // namespace cmf

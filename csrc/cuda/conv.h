// The convolution with what follows it, as implicit matrix products on tensor cores: host side.
//
// `tile_rows` is 64 or 128, for tests; 0 chooses. The functions take what conv_refusal has nothing
// against, and check no pointer. `tf32` says how float32 is multiplied; `stream` is a cudaStream_t
// of the current device, so that any compiler can read this file.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "common/conv_act_pool2d_problem.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// Why the kernels can't take this problem (its backward); null where they can.
const char* conv_refusal(const ConvActPool2dProblem& problem, bool backward);

// Whether x is read 16 bytes at a time, and w must be channels_last; else w must be contiguous.
bool conv_reads_chunks(const ConvActPool2dProblem& problem);

// What only the kernels see has filters fastest, this many: rounded up to 16 bytes of elements.
int64_t conv_filters_row(const ConvActPool2dProblem& problem);

// y, and index (or mask) [N, P, Q, filters_row] and pre-activation where they are not null.
void conv_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors, bool tf32,
                  int tile_rows, void* stream);

// dx in x's format, from the pooled gradient and the index [N, P, Q, filters_row] and the weights
// [C, R, S, filters_row], both with zeros behind the filters.
void conv_input_gradient(const ConvActPool2dProblem& problem, const void* gradient,
                         const void* index, const void* weights, void* dx, bool tf32, int tile_rows,
                         void* stream);

// Into how many parts the pixels are split for dw.
int64_t conv_weight_splits(const ConvActPool2dProblem& problem);

// dw by the strides of filters, channels and taps, from x in its format. partial: float32 [splits,
// K, C · R · S].
void conv_weight_gradient(const ConvActPool2dProblem& problem, const void* gradient,
                          const void* index, const void* x, float* partial, void* dw,
                          const int64_t (&dw_strides)[3], bool tf32, void* stream);

// The rows of `partial` for dbias: [rows, K], float32.
int64_t conv_bias_rows(const ConvActPool2dProblem& problem);

// gradient [N, P, Q, filters_row] = dy · act' (null where it is not wanted), and dbias (likewise).
// dy and saved are in y's format; index is read for an average's mask.
void conv_pooled_gradient(const ConvActPool2dProblem& problem, const void* dy, const void* saved,
                          const void* index, void* gradient, float* partial, void* dbias,
                          void* stream);

}  // namespace CMF_ISA
}  // namespace cmf

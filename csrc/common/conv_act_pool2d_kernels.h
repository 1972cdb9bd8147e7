// What the kernels of every convolution algorithm take and give.
//
// Read by files of every instruction set, so: plain data, nothing inline.
#pragma once

#include "common/conv_act_pool2d_problem.h"

namespace cmf {

enum class ConvAlgorithm : int32_t {
  kWinograd,
  kWinogradF6,
  kFewChannels,
  kPointwise,
  kDepthwise,
  kImplicitGemm,
  kPatches
};
constexpr int kConvAlgorithms = 7;

struct ConvForwardTensors {
  const void* x;         // [N, C, H, W], in the problem's format
  const void* w;         // [K, C / groups, R, S], contiguous
  const void* prepared;  // w as the algorithm wants it, where it prepares weights
  const void* bias;      // [K] or null
  void* y;               // [N, K, P, Q]
  void* index;           // [N, K, P, Q] or null
  void* preactivation;   // [N, K, P, Q] or null
  int64_t y_pixel;       // of an NHWC y: elements from a pixel to the next, 0 = K; more where y is
                         // some channels of a larger tensor
  const void* x_scale;   // [C] or null: x is max(x · x_scale + x_shift, 0), of pointwise alone
  const void* x_shift;   // [C] or null: then x_scale is [N, C], and x is x · x_scale
  bool w_channels_last;  // w is [K, R, S, C / groups], where the algorithm transforms it itself
  const void* residual;  // [N, K, P, Q], lies as y, or null: y is act(x * w + bias + residual)
  const void* w_scale;   // [K] or null: the filters are w · w_scale, of `reads_weights` alone
};

// What makes an input gradient a transposed convolution's output: y [N, C, H, W] = act(dx + bias).
struct ConvTransposed {
  const void* prepared;            // w as `prepare_transposed` gives it, or null: made of w anew
  const void* bias;                // [C] or null
  const ActPool2dProblem* output;  // of y, without a pooling: its activation
  int64_t y_pixel;                 // as in ConvForwardTensors
};

struct ConvBackwardTensors {
  const void* dy;     // [N, K, P, Q], in y's format
  const void* saved;  // what problem.pool.saved names, or null
  const void* index;  // [N, K, P, Q] or null
  const void* x;      // [N, C, H, W]
  const void* w;      // [K, C / groups, R, S], contiguous
  const void* bias;   // [K] or null
  void* dx;           // [N, C, H, W] in x's format, or null
  void* dw;           // [K, C / groups, R, S] contiguous, or null
  void* dbias;        // [K] or null
  // Set, where not null: whether dw must be computed some other way, because in the algorithm what
  // is not finite reaches elements of dw that it has nothing to do with.
  bool* dw_spoilt;
  const ConvTransposed* transposed;  // or null: dx is a gradient
  bool w_channels_last;  // w and dw are [K, R, S, C / groups], where it transforms w itself
};

// The kernels of one algorithm. `forward` and `backward` give false where scratch memory could not
// be had; each may be null where there is none.
struct ConvKernels {
  // Why this problem (its backward) is not for this algorithm; null where it is.
  const char* (*refusal)(const ConvActPool2dProblem& problem, bool backward);
  bool (*forward)(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                  int threads);
  bool (*backward)(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                   int threads);
  // For an algorithm that wants its weights transformed: how many elements those take, and the
  // transform. Null for one that reads w as it is.
  int64_t (*prepared_size)(const ConvActPool2dProblem& problem);
  bool (*prepare)(const ConvActPool2dProblem& problem, const void* w, void* prepared, int threads);
  // The transposed convolution, whose problem is that of the convolution that it is the adjoint of,
  // without activation and pooling: dx alone, `tensors.transposed` given. `refusal` of a backward
  // speaks for it too, but where there is a `transposed_refusal`. Then its weights, as above.
  bool (*transposed)(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                     int threads);
  int64_t (*transposed_size)(const ConvActPool2dProblem& problem);
  bool (*prepare_transposed)(const ConvActPool2dProblem& problem, const void* w, void* prepared,
                             int threads);
  // Of an algorithm that wants its weights transformed, or null: whether `forward` does it itself,
  // and no slower, where `tensors.prepared` is null.
  bool (*transforms_weights)(const ConvActPool2dProblem& problem, int threads) = nullptr;
  const char* (*transposed_refusal)(const ConvActPool2dProblem& problem) = nullptr;
  // As `refusal`, of a forward with a residual; null where the algorithm takes none.
  const char* (*residual_refusal)(const ConvActPool2dProblem& problem) = nullptr;
  // Of one that does so, or null: whether that is as fast as to keep them, which has to be watched
  // for writes to w. `forward` then takes a `w_scale`.
  bool (*reads_weights)(const ConvActPool2dProblem& problem, int threads) = nullptr;
};

// -1 where the name is unknown.
int32_t conv_algorithm_from_name(const char* name);

}  // namespace cmf

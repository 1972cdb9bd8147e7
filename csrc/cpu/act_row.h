// Activations and their gradients over a row of values: the activation is chosen once a row, so
// that pooling loops need no variant of their own for each.
#pragma once

#include "common/act_pool2d_problem.h"
#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// bias of element i: row[i] where there is a row, else value.
template <class C>
struct RowBias {
  C value;
  const C* row;
};

// y[i] = act(x[i] + bias); x may be y.
template <class In, class Out>
void activate_row(const ActPool2dProblem& problem, const In* x, RowBias<ComputeType<In>> bias,
                  Out* y, int64_t count);

// The same into whole vectors of y, on their boundary, past the caches: fence_streams() before
// others read them.
void stream_activated(const ActPool2dProblem& problem, const float* x, float* y, int64_t count);

// g[i] = dy[i] * act'(...), the derivative from what problem.saved names: the output, the chosen
// pre-activation, or x + bias. Saved::kNothing and kMask give g = dy.
template <class D, class T>
void backward_row(const ActPool2dProblem& problem, const D* dy, const T* saved,
                  RowBias<ComputeType<T>> bias, ComputeType<T>* g, int64_t count);

// y[i] = x[i], rounded once.
template <class T>
void store_row(const ComputeType<T>* x, T* y, int64_t count);

// y[i] = x[i]
template <class T>
void widen_row(const T* x, ComputeType<T>* y, int64_t count);

// sums[c] = the sum of row [pixels, channels] over the pixels, in order.
template <class C>
void sum_pixels(const C* row, int64_t pixels, int64_t channels, C* sums);

// The sum of x, in an order that depends on count alone.
template <class C>
C sum_row(const C* x, int64_t count);

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/act_row.h"

#include "common/activation.h"
#include "cpu/simd.h"
#include "cpu/vector_math.h"

namespace cmf {
namespace CMF_ISA {
namespace {

// body(i, lanes) over a row: whole vectors, then one partial.
template <class C, class Body>
CMF_HOST_DEVICE void for_each_vector(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<C> <= count; i += kLanes<C>) body(i, kLanes<C>);
  if (i < count) body(i, static_cast<int>(count - i));
}

template <class C>
CMF_HOST_DEVICE Vec<C> bias_lanes(RowBias<C> bias, int64_t i, int lanes) {
  return bias.row ? load_lanes<C>(bias.row + i, lanes) : broadcast<C>(bias.value);
}

template <Activation A, class In, class Out>
void activate_row_with(ComputeType<In> param, const In* x, RowBias<ComputeType<In>> bias, Out* y,
                       int64_t count) {
  typedef ComputeType<In> C;
  for_each_vector<C>(count, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const Vec<C> z = load_lanes<C>(x + i, lanes) + bias_lanes(bias, i, lanes);
    store_lanes<C>(y + i, activate<A>(z, param), lanes);
  });
}

template <Activation A>
void stream_activated_with(float param, const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<float>) {
    stream(y + i, activate<A>(load<float>(x + i), param));
  }
}

template <Activation A, class D, class T>
void backward_row_from_output(ComputeType<T> param, const D* dy, const T* y, ComputeType<T>* g,
                              int64_t count) {
  typedef ComputeType<T> C;
  for_each_vector<C>(count, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const Vec<C> gradient = load_lanes<C>(dy + i, lanes);
    const Vec<C> output = load_lanes<C>(y + i, lanes);
    store_lanes<C>(g + i, backward_from_output<A>(gradient, output, param), lanes);
  });
}

template <Activation A, class D, class T>
void backward_row_from_input(ComputeType<T> param, const D* dy, const T* x,
                             RowBias<ComputeType<T>> bias, ComputeType<T>* g, int64_t count) {
  typedef ComputeType<T> C;
  for_each_vector<C>(count, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const Vec<C> gradient = load_lanes<C>(dy + i, lanes);
    const Vec<C> z = load_lanes<C>(x + i, lanes) + bias_lanes(bias, i, lanes);
    store_lanes<C>(g + i, backward_from_input<A>(gradient, z, param), lanes);
  });
}

template <class D, class C>
void copy_row(const D* x, C* y, int64_t count) {
  for_each_vector<C>(count, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    store_lanes<C>(y + i, load_lanes<C>(x + i, lanes), lanes);
  });
}

}  // namespace

template <class In, class Out>
void activate_row(const ActPool2dProblem& problem, const In* x, RowBias<ComputeType<In>> bias,
                  Out* y, int64_t count) {
  const ComputeType<In> param = static_cast<ComputeType<In>>(problem.activation_param);
  switch (static_cast<Activation>(problem.activation)) {
#define CMF_CASE(A)   \
  case Activation::A: \
    return activate_row_with<Activation::A>(param, x, bias, y, count);
    CMF_EACH_ACTIVATION(CMF_CASE)
#undef CMF_CASE
  }
}

void stream_activated(const ActPool2dProblem& problem, const float* x, float* y, int64_t count) {
  const float param = static_cast<float>(problem.activation_param);
  switch (static_cast<Activation>(problem.activation)) {
#define CMF_CASE(A)   \
  case Activation::A: \
    return stream_activated_with<Activation::A>(param, x, y, count);
    CMF_EACH_ACTIVATION(CMF_CASE)
#undef CMF_CASE
  }
}

template <class D, class T>
void backward_row(const ActPool2dProblem& problem, const D* dy, const T* saved,
                  RowBias<ComputeType<T>> bias, ComputeType<T>* g, int64_t count) {
  const ComputeType<T> param = static_cast<ComputeType<T>>(problem.activation_param);
  switch (problem.saved) {
    case Saved::kNothing:
    case Saved::kMask:
      return copy_row(dy, g, count);
    case Saved::kOutput:
      switch (static_cast<Activation>(problem.activation)) {
#define CMF_CASE(A)   \
  case Activation::A: \
    return backward_row_from_output<Activation::A>(param, dy, saved, g, count);
        CMF_CASE(kRelu)
        CMF_CASE(kLeakyRelu)
        CMF_CASE(kRelu6)
        CMF_CASE(kElu)
        CMF_CASE(kTanh)
        CMF_CASE(kSigmoid)
        CMF_CASE(kSoftplus)
#undef CMF_CASE
        default:
          return;  // complete_act_pool2d_problem gives no other activation this kind
      }
    case Saved::kPreactivation:
    case Saved::kInput:
      switch (static_cast<Activation>(problem.activation)) {
#define CMF_CASE(A)   \
  case Activation::A: \
    return backward_row_from_input<Activation::A>(param, dy, saved, bias, g, count);
        CMF_EACH_ACTIVATION(CMF_CASE)
#undef CMF_CASE
      }
  }
}

template <class T>
void store_row(const ComputeType<T>* x, T* y, int64_t count) {
  typedef ComputeType<T> C;
  for_each_vector<C>(count, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    store_lanes<C>(y + i, load_lanes<C>(x + i, lanes), lanes);
  });
}

template <class T>
void widen_row(const T* x, ComputeType<T>* y, int64_t count) {
  copy_row(x, y, count);
}

template <class C>
void sum_pixels(const C* row, int64_t pixels, int64_t channels, C* sums) {
  for_each_vector<C>(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    Vec<C> sum = {};
    for (int64_t i = 0; i < pixels; ++i) sum += load_lanes<C>(row + i * channels + c, lanes);
    store_lanes<C>(sums + c, sum, lanes);
  });
}

template <class C>
C sum_row(const C* x, int64_t count) {
  constexpr int kChains = 4;  // an addition waits for the one before it
  Vec<C> sums[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes<C> <= count; i += kChains * kLanes<C>) {
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) sums[j] += load<C>(x + i + j * kLanes<C>);
  }
  for_each_vector<C>(count - i, [&](int64_t j, int lanes) __attribute__((always_inline)) {
    sums[0] += load_lanes<C>(x + i + j, lanes);
  });
  return reduce_add<C>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

#define CMF_INSTANTIATE_ACTIVATE(In, Out)                                 \
  template void activate_row<In, Out>(const ActPool2dProblem&, const In*, \
                                      RowBias<ComputeType<In>>, Out*, int64_t);
CMF_INSTANTIATE_ACTIVATE(float, float)
CMF_INSTANTIATE_ACTIVATE(double, double)
CMF_INSTANTIATE_ACTIVATE(Half, Half)
CMF_INSTANTIATE_ACTIVATE(Half, float)
CMF_INSTANTIATE_ACTIVATE(float, Half)
CMF_INSTANTIATE_ACTIVATE(BFloat16, BFloat16)
CMF_INSTANTIATE_ACTIVATE(BFloat16, float)
CMF_INSTANTIATE_ACTIVATE(float, BFloat16)

#define CMF_INSTANTIATE_BACKWARD(D, T)                                          \
  template void backward_row<D, T>(const ActPool2dProblem&, const D*, const T*, \
                                   RowBias<ComputeType<T>>, ComputeType<T>*, int64_t);
CMF_INSTANTIATE_BACKWARD(float, float)
CMF_INSTANTIATE_BACKWARD(double, double)
CMF_INSTANTIATE_BACKWARD(Half, Half)
CMF_INSTANTIATE_BACKWARD(float, Half)
CMF_INSTANTIATE_BACKWARD(BFloat16, BFloat16)
CMF_INSTANTIATE_BACKWARD(float, BFloat16)

template void store_row<float>(const float*, float*, int64_t);
template void store_row<double>(const double*, double*, int64_t);
template void store_row<Half>(const float*, Half*, int64_t);
template void store_row<BFloat16>(const float*, BFloat16*, int64_t);

template void widen_row<float>(const float*, float*, int64_t);
template void widen_row<double>(const double*, double*, int64_t);
template void widen_row<Half>(const Half*, float*, int64_t);
template void widen_row<BFloat16>(const BFloat16*, float*, int64_t);

template void sum_pixels<float>(const float*, int64_t, int64_t, float*);
template void sum_pixels<double>(const double*, int64_t, int64_t, double*);

template float sum_row<float>(const float*, int64_t);
template double sum_row<double>(const double*, int64_t);

}  // namespace CMF_ISA
}  // namespace cmf

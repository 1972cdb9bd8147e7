// The elementwise functions of the GAN losses with their gradients: one definition for every
// device.
//
// V is a vector of float or double (csrc/cpu/simd.h), or a scalar where a device has no vectors;
// the functions log, log1p and select are found by overload. Each `evaluate` gives
//   value      the function of one element,
//   dx, dy     grad * its derivative by the first and second operand,
//   bad        where an operand is no probability (kHasDomain),
// and what the caller does not use costs nothing once inlined.
//
// kLogistic: made of odds = exp(-|logit(x, y)|), which the caller computes: the exponential is the
// longer half of a long chain of dependent operations, and two loops of short ones overlap better.
// kAddsLogarithm: log(1 + odds) is still to be added to the value. Of many elements that is one
// logarithm of a product.
#pragma once

#include "common/dtype.h"
#include "common/gan_loss_problem.h"
// Neither vectors nor scalars have a namespace to be looked up in: their functions must be declared
// before their use.
#if defined(CMF_CUDA)
#include "cuda/device_math.h"
#else
#include "cpu/simd.h"
#include "cpu/vector_math.h"
#endif

namespace cmf {
namespace CMF_ISA {

template <class V>
using MaskOf = decltype(V{} < V{});

template <class V>
struct GanLossResult {
  V value;
  V dx;
  V dy;
  MaskOf<V> bad;
};

template <int kCount>
struct PlainFunction {
  static constexpr int kOperands = kCount;
  static constexpr bool kLogistic = false;
  static constexpr bool kAddsLogarithm = false;
  static constexpr bool kHasDomain = false;
};

template <int kCount>
struct FunctionOfProbability : PlainFunction<kCount> {
  static constexpr bool kHasDomain = true;
};

template <int kCount, bool kLogarithmIsAdded>
struct LogisticFunction : PlainFunction<kCount> {
  static constexpr bool kLogistic = true;
  static constexpr bool kAddsLogarithm = kLogarithmIsAdded;
};

// ~mask of vectors; of a bool ~ would be true whatever it is.
template <class M>
CMF_HOST_DEVICE M negated(M mask) {
  return ~mask;
}
CMF_HOST_DEVICE bool negated(bool mask) { return !mask; }

template <class V>
CMF_HOST_DEVICE V absolute(V x) {
  return select(x < V{}, -x, x);
}

// exp(-|x|), and log(1 + e) for what that can be: 0 <= e <= 1.
#if defined(CMF_CUDA)
template <class C>
CMF_HOST_DEVICE C exp_minus_magnitude(C x) {
  return exp(-absolute(x));
}
template <class C>
CMF_HOST_DEVICE C log_one_plus(C e) {
  return log1p(e);
}
#else
CMF_HOST_DEVICE Vec<float> exp_minus_magnitude(Vec<float> x) {
  return exp_of_negative(bit_cast<Vec<float> >(bit_cast<Mask<float> >(x) | INT32_MIN));
}
CMF_HOST_DEVICE Vec<double> exp_minus_magnitude(Vec<double> x) {
  return exp_of_negative(-absolute(x));
}
CMF_HOST_DEVICE Vec<double> log_one_plus(Vec<double> e) { return log1p(e); }

// The range is known: no range reduction. Coefficients fitted for the least relative error (3e-8);
// with their rounding 1.6 ulp. NaN stays NaN.
CMF_HOST_DEVICE Vec<float> log_one_plus(Vec<float> e) {
  Vec<float> q = broadcast<float>(0x1.5f96b8p-8f);
  q = q * e - 0x1.ec98fap-6f;
  q = q * e + 0x1.446bf0p-4f;
  q = q * e - 0x1.19ad84p-3f;
  q = q * e + 0x1.88444ep-3f;
  q = q * e - 0x1.fd1320p-3f;
  q = q * e + 0x1.5535dap-2f;
  q = q * e - 0x1.ffff14p-2f;
  return e * e * q + e;
}
#endif

// exp(-|x|) and 1 + exp(-|x|): what every logistic function here is made of. Divided, not
// multiplied by a reciprocal: a compiler may round such a product together with the sum that takes
// it, in one pass over the elements and not in another, and a gradient would differ in its last
// bit.
template <class V>
struct Logistic {
  V odds;
  V total;
  MaskOf<V> positive;

  CMF_HOST_DEVICE Logistic(V x, V odds_of_x)
      : odds(odds_of_x), total(1 + odds_of_x), positive(x > V{}) {}
  // sigmoid(-|x|), exact where it is tiny
  CMF_HOST_DEVICE V small() const { return odds / total; }
  CMF_HOST_DEVICE V sigmoid() const { return select(positive, V{} + 1, odds) / total; }
};

// Binary cross-entropy of a logit: softplus(x) - t x, written so that nothing cancels or overflows:
// c x + log(1 + exp(-|x|)) with c = 1 - t for x > 0 and -t otherwise. Derivative: sigmoid(x) - t,
// which is c -+ sigmoid(-|x|).
struct LogLossLogits : LogisticFunction<1, true> {
  template <class V>
  static CMF_HOST_DEVICE V logit(V x, V) {
    return x;
  }
  template <class V>
  static CMF_HOST_DEVICE GanLossResult<V> evaluate(V x, V, V, V odds, V target, V grad) {
    GanLossResult<V> result = {};
    const Logistic<V> logistic(x, odds);
    const V above = 1 - target;
    const V c = select(logistic.positive, above, -target);
    // D = 1 or 0 exactly at an infinite logit: no loss there, not 0 * inf
    result.value = select(c == V{}, V{}, c * x);
    // grad * c from constants of the loop
    const V grad_c = select(logistic.positive, grad * above, grad * -target);
    const V small = logistic.small();
    result.dx = grad_c + grad * select(logistic.positive, -small, small);
    return result;
  }
};

// A weighted logarithm is no factor of a product.
template <bool kWeighted>
struct LogLossLogitsTarget : LogisticFunction<kWeighted ? 3 : 2, !kWeighted> {
  template <class V>
  static CMF_HOST_DEVICE V logit(V x, V) {
    return x;
  }
  template <class V>
  static CMF_HOST_DEVICE GanLossResult<V> evaluate(V x, V target, V weight, V odds, V, V grad) {
    GanLossResult<V> result = {};
    const Logistic<V> logistic(x, odds);
    const V c = select(logistic.positive, 1 - target, -target);
    const V small = logistic.small();
    if (kWeighted) grad *= weight;
    result.dx = grad * (c + select(logistic.positive, -small, small));
    result.dy = grad * -x;
    result.value = c * x;
    if (kWeighted) result.value += log_one_plus(odds);
    // At infinite logits what PyTorch's own sequence of operations gives:
    // (1 - t) x - log sigmoid(x), where log sigmoid is 0 or -inf.
    const V infinite = (1 - target) * x - select(logistic.positive, V{}, x);
    result.value = select(absolute(x) == V{} + __builtin_inff(), infinite, result.value);
    if (kWeighted) result.value *= weight;
    return result;
  }
};

// Binary cross-entropy of a probability, with the guards of
// torch.nn.functional.binary_cross_entropy: logarithms not below -100, derivative (p - t) / max(p
// (1 - p), 1e-12).
template <class V>
CMF_HOST_DEVICE GanLossResult<V> log_loss_probabilities(V p, V target, V grad) {
  GanLossResult<V> result = {};
  const V log_p = log(p);
  const V log_q = log1p(-p);
  const V floor = V{} - 100;
  const V clamped_p = select(log_p < floor, floor, log_p);
  const V clamped_q = select(log_q < floor, floor, log_q);
  result.value = (target - 1) * clamped_q - target * clamped_p;
  const V variance = (1 - p) * p;
  const V least = V{} + 1e-12f;
  result.dx = grad * (p - target) / select(variance < least, least, variance);
  result.dy = grad * (log_q - log_p);
  result.bad = negated(MaskOf<V>((p >= V{}) & (p <= V{} + 1)));
  return result;
}

struct LogLossProbabilities : FunctionOfProbability<1> {
  template <class V>
  static CMF_HOST_DEVICE GanLossResult<V> evaluate(V p, V, V, V, V target, V grad) {
    return log_loss_probabilities(p, target, grad);
  }
};

template <bool kWeighted>
struct LogLossProbabilitiesTarget : FunctionOfProbability<kWeighted ? 3 : 2> {
  template <class V>
  static CMF_HOST_DEVICE GanLossResult<V> evaluate(V p, V target, V weight, V, V, V grad) {
    GanLossResult<V> result = log_loss_probabilities(p, target, kWeighted ? grad * weight : grad);
    if (kWeighted) result.value *= weight;
    result.bad |= negated(MaskOf<V>((target >= V{}) & (target <= V{} + 1)));
    return result;
  }
};

struct LeastSquares : PlainFunction<1> {
  template <class V>
  static CMF_HOST_DEVICE GanLossResult<V> evaluate(V x, V, V, V, V label, V grad) {
    GanLossResult<V> result = {};
    const V difference = x - label;
    result.value = difference * difference * V(V{} + 0.5f);
    result.dx = grad * difference;
    return result;
  }
};

// max(0, 1 + sign x). The flat side gives 0, not 0 * grad, and NaN is not on it: as relu.
struct Hinge : PlainFunction<1> {
  template <class V>
  static CMF_HOST_DEVICE GanLossResult<V> evaluate(V x, V, V, V, V sign, V grad) {
    GanLossResult<V> result = {};
    const V margin = 1 + sign * x;
    result.value = select(margin <= V{}, V{}, margin);
    result.dx = select(margin <= V{}, V{}, grad * sign);
    return result;
  }
};

struct Linear : PlainFunction<1> {
  template <class V>
  static CMF_HOST_DEVICE GanLossResult<V> evaluate(V x, V, V, V, V, V grad) {
    GanLossResult<V> result = {};
    result.value = x;
    result.dx = grad;
    return result;
  }
};

// softplus(x - y) = max(d, 0) + log(1 + exp(-|d|))
struct Relativistic : LogisticFunction<2, true> {
  template <class V>
  static CMF_HOST_DEVICE V logit(V x, V y) {
    return x - y;
  }
  template <class V>
  static CMF_HOST_DEVICE GanLossResult<V> evaluate(V x, V y, V, V odds, V, V grad) {
    GanLossResult<V> result = {};
    const V difference = x - y;
    const Logistic<V> logistic(difference, odds);
    result.value = select(logistic.positive, difference, V{});
    result.dx = grad * logistic.sigmoid();
    result.dy = -result.dx;
    return result;
  }
};

}  // namespace CMF_ISA
}  // namespace cmf

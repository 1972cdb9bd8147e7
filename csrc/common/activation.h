// The activations and their gradients, written once for every device.
//
// V is a vector of float or double (csrc/cpu/simd.h), or a plain float where a device has no
// vectors; C is its scalar. exp, expm1, log1p, tanh, erf, sigmoid and select are found by overload.
//
// Values follow torch.nn.functional, formula by formula, NaN and infinities included. Where
// PyTorch's own vector loop and scalar tail disagree (the gradients of elu, relu6 and hardswish at
// NaN), the choice is stated. `param` is leaky_relu's negative_slope, elu's alpha, softplus's beta.
//
// The gradient functions return dy * act'. Where a derivative is 0 by definition they return 0, not
// 0 * dy: an infinite dy behind a dead unit stays out, as in PyTorch's threshold_backward.
#pragma once

#include "common/dtype.h"
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

// The order is the interface's: crossmedia_fast/ops/conv_act_pool/activation.py has the same.
enum class Activation : int32_t {
  kIdentity,
  kRelu,
  kLeakyRelu,
  kRelu6,
  kElu,
  kSilu,
  kGelu,
  kGeluTanh,
  kTanh,
  kSigmoid,
  kSoftplus,
  kHardswish,
};
constexpr int kActivations = 12;

// One specialisation an activation. Each has activate and from_input, and from_output where
// derives_from_output says so.
template <Activation A>
struct ActivationRule;

// z; 1
template <>
struct ActivationRule<Activation::kIdentity> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C) {
    return z;
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_output(V dy, V, C) {
    return dy;
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V, C) {
    return dy;
  }
};

// max(z, 0); z > 0. F.relu: NaN stays, -0 stays; its gradient passes where z is NaN.
template <>
struct ActivationRule<Activation::kRelu> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C) {
    return select(z < C(0), V{}, z);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_output(V dy, V y, C) {
    return select(y <= C(0), V{}, dy);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C slope) {
    return from_output(dy, z, slope);
  }
};

// z > 0 ? z : slope z; z > 0 ? 1 : slope. F.leaky_relu: slope 0 makes NaN of -inf.
template <>
struct ActivationRule<Activation::kLeakyRelu> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C slope) {
    return select(z > C(0), z, z * slope);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_output(V dy, V y, C slope) {
    return select(y > C(0), dy, dy * slope);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C slope) {
    return from_output(dy, z, slope);
  }
};

// min(max(z, 0), 6); 0 < z < 6. F.relu6 (hardtanh): at exactly 0 and 6 the derivative is 0. At NaN
// PyTorch gives 0 in its vector loop and dy in its tail; here dy, as relu.
template <>
struct ActivationRule<Activation::kRelu6> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C) {
    return select(z < C(0), V{}, select(z > C(6), V{} + C(6), z));
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_output(V dy, V y, C) {
    return select((y <= C(0)) | (y >= C(6)), V{}, dy);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C param) {
    return from_output(dy, z, param);
  }
};

// z > 0 ? z : alpha (e^z - 1); z > 0 ? 1 : alpha e^z = y + alpha. F.elu. At NaN PyTorch's vector
// loop gives NaN and its tail dy; here NaN.
template <>
struct ActivationRule<Activation::kElu> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C alpha) {
    // F.elu: z < 0, so that -0 stays and alpha < 0 doesn't turn 0 into -0
    return select(z < C(0), expm1(z) * alpha, z);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_output(V dy, V y, C alpha) {
    return select(y > C(0), dy, dy * (y + alpha));
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C alpha) {
    return select(z > C(0), dy, dy * (exp(z) * alpha));
  }
};

// z / (1 + e^-z); with s = sigmoid(z): s (1 + z (1 - s)). F.silu: NaN at -inf; the derivative is
// NaN at both infinities.
template <>
struct ActivationRule<Activation::kSilu> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C) {
    return quotient(z, exp(-z) + C(1));
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C) {
    const V s = sigmoid(z);
    return dy * (s * (z * (C(1) - s) + C(1)));
  }
};

// z Phi(z), Phi(z) = (1 + erf(z / sqrt 2)) / 2; Phi(z) + z phi(z), phi(z) = e^(-z^2 / 2) / sqrt(2
// pi). F.gelu: NaN at -inf; the derivative is NaN at both infinities.
template <>
struct ActivationRule<Activation::kGelu> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C) {
    return (z * C(0.5)) * (erf(z * C(0.70710678118654752440)) + C(1));
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C) {
    const V cdf = erf(z * C(0.70710678118654752440)) * C(0.5) + C(0.5);
    const V pdf = exp(z * z * C(-0.5)) * C(0.39894228040143267794);
    return dy * (z * pdf + cdf);
  }
};

// z/2 (1 + t), t = tanh(u), u = sqrt(2 / pi) (z + 0.044715 z^3); (1 + t)/2 + z/2 (1 - t^2) u'.
// F.gelu(approximate="tanh"), the formula of Hendrycks and Gimpel (arXiv 1606.08415).
template <>
struct ActivationRule<Activation::kGeluTanh> {
  template <class V, class C>
  static CMF_HOST_DEVICE V inner(V z, C) {
    return (z * z * z * C(0.044715) + z) * C(0.79788456080286535588);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C param) {
    return (z * C(0.5)) * (tanh(inner(z, param)) + C(1));
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C param) {
    const V t = tanh(inner(z, param));
    const V slope = (z * z * C(3 * 0.044715) + C(1)) * C(0.79788456080286535588);
    return dy * ((t + C(1)) * C(0.5) + (z * C(0.5)) * (C(1) - t * t) * slope);
  }
};

// tanh z; 1 - y^2
template <>
struct ActivationRule<Activation::kTanh> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C) {
    return tanh(z);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_output(V dy, V y, C) {
    return dy * (C(1) - y * y);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C param) {
    return from_output(dy, tanh(z), param);
  }
};

// sigmoid z; (1 - y) y
template <>
struct ActivationRule<Activation::kSigmoid> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C) {
    return sigmoid(z);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_output(V dy, V y, C) {
    return dy * ((C(1) - y) * y);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C param) {
    return from_output(dy, sigmoid(z), param);
  }
};

// beta z > 20 ? z : log(1 + e^(beta z)) / beta; sigmoid(beta z) = 1 - e^(-beta y). F.softplus with
// its default threshold.
template <>
struct ActivationRule<Activation::kSoftplus> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C beta) {
    const V scaled = z * beta;
    return select(scaled > C(20), z, softplus(scaled) / beta);
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_output(V dy, V y, C beta) {
    const V scaled = y * beta;
    return select(scaled > C(20), dy, dy * -expm1(-scaled));
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C beta) {
    const V scaled = z * beta;
    return select(scaled > C(20), dy, dy * sigmoid(scaled));
  }
};

// z min(max(z + 3, 0), 6) / 6; 0 up to -3, z/3 + 1/2 between, 1 from 3. F.hardswish: NaN at -inf.
// At NaN PyTorch's vector loop gives NaN and its tail dy; here NaN.
template <>
struct ActivationRule<Activation::kHardswish> {
  template <class V, class C>
  static CMF_HOST_DEVICE V activate(V z, C param) {
    // times the rounded 1/6, as a division takes as long as all the rest; 6 times it is 1
    return z * (ActivationRule<Activation::kRelu6>::activate(z + C(3), param) * C(1.0 / 6));
  }
  template <class V, class C>
  static CMF_HOST_DEVICE V from_input(V dy, V z, C) {
    return select(z <= C(-3), V{}, select(z >= C(3), dy, dy * (z / C(3) + C(0.5))));
  }
};

// clang-format off: it formats these lines another way each time
#define CMF_EACH_ACTIVATION(CASE)                                           \
  CASE(kIdentity) CASE(kRelu) CASE(kLeakyRelu) CASE(kRelu6) CASE(kElu)      \
  CASE(kSilu) CASE(kGelu) CASE(kGeluTanh) CASE(kTanh) CASE(kSigmoid)        \
  CASE(kSoftplus) CASE(kHardswish)
// clang-format on

template <Activation A, class V, class C>
CMF_HOST_DEVICE V activate(V z, C param) {
  return ActivationRule<A>::activate(z, param);
}

// dy * act'(z), the derivative from y = act(z)
template <Activation A, class V, class C>
CMF_HOST_DEVICE V backward_from_output(V dy, V y, C param) {
  return ActivationRule<A>::from_output(dy, y, param);
}

// dy * act'(z), from z
template <Activation A, class V, class C>
CMF_HOST_DEVICE V backward_from_input(V dy, V z, C param) {
  return ActivationRule<A>::from_input(dy, z, param);
}

// Whether act never decreases, so that max(act(z)) = act(max(z)).
inline bool is_monotone(Activation activation, double param) {
  switch (activation) {
    case Activation::kIdentity:
    case Activation::kRelu:
    case Activation::kRelu6:
    case Activation::kTanh:
    case Activation::kSigmoid:
      return true;
    case Activation::kElu:
      return param >= 0;
    case Activation::kLeakyRelu:  // slope 0 makes NaN of -inf, and NaN wins a maximum
    case Activation::kSoftplus:
      return param > 0;
    case Activation::kSilu:
    case Activation::kGelu:
    case Activation::kGeluTanh:
    case Activation::kHardswish:
      break;
  }
  return false;
}

// Whether act'(z) follows from act(z): the twin of registration.py's function of that name.
inline bool derives_from_output(Activation activation, double param) {
  switch (activation) {
    case Activation::kIdentity:
    case Activation::kRelu:
    case Activation::kRelu6:
    case Activation::kTanh:
    case Activation::kSigmoid:
      return true;
    case Activation::kLeakyRelu:
      return param >= 0;
    case Activation::kElu:
    case Activation::kSoftplus:
      return param > 0;
    case Activation::kSilu:
    case Activation::kGelu:
    case Activation::kGeluTanh:
    case Activation::kHardswish:
      break;
  }
  return false;
}

}  // namespace CMF_ISA
}  // namespace cmf

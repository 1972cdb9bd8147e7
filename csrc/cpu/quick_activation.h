// For kernels whose sums are in registers: activations of few instructions, and stores.
#pragma once

#include "common/act_pool2d_problem.h"
#include "common/activation.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

// An activation of few instructions, done while the sums are in registers: NaN and -0 as
// activation.h has them.
struct QuickActivation {
  enum Kind { kClamp, kLeaky, kHardswish, kAfterwards };
  Kind kind;  // kAfterwards: too long for this; a pass over the stored rows does it
  float low;
  float high;
  float slope;

  CMF_HOST_DEVICE Vec<float> operator()(Vec<float> z) const {
    if (kind == kLeaky) return leaky(z);
    return kind == kHardswish ? hardswish(z) : clamp(z);
  }
  // All of them: one look at the kind.
  template <int kCount>
  CMF_HOST_DEVICE void each(Vec<float>* values) const {
    if (kind == kLeaky) {
#pragma GCC unroll 64
      for (int i = 0; i < kCount; ++i) values[i] = leaky(values[i]);
    } else if (kind == kHardswish) {
#pragma GCC unroll 64
      for (int i = 0; i < kCount; ++i) values[i] = hardswish(values[i]);
    } else {
#pragma GCC unroll 64
      for (int i = 0; i < kCount; ++i) values[i] = clamp(values[i]);
    }
  }
  CMF_HOST_DEVICE Vec<float> leaky(Vec<float> z) const { return select(z > 0.0f, z, z * slope); }
  CMF_HOST_DEVICE Vec<float> hardswish(Vec<float> z) const {
    return z * (clamp(z + 3.0f) * (1.0f / 6));
  }
  // As a maximum and a minimum instruction have it: a NaN stays.
  CMF_HOST_DEVICE Vec<float> clamp(Vec<float> z) const {
    const Vec<float> raised = low > z ? broadcast(low) : z;
    return high < raised ? broadcast(high) : raised;
  }
};

CMF_HOST_DEVICE QuickActivation no_activation() {
  const float infinity = __builtin_inff();
  return QuickActivation{QuickActivation::kClamp, -infinity, infinity, 0.0f};
}

CMF_HOST_DEVICE QuickActivation quick_activation(const ActPool2dProblem& p) {
  QuickActivation quick = no_activation();
  switch (static_cast<Activation>(p.activation)) {
    case Activation::kIdentity:
      break;
    case Activation::kRelu:
      quick.low = 0.0f;
      break;
    case Activation::kRelu6:
      quick.low = 0.0f;
      quick.high = 6.0f;
      break;
    case Activation::kHardswish:
      quick.kind = QuickActivation::kHardswish;
      quick.low = 0.0f;
      quick.high = 6.0f;
      break;
    case Activation::kLeakyRelu:
      quick.kind = QuickActivation::kLeaky;
      quick.slope = static_cast<float>(p.activation_param);
      break;
    default:
      quick.kind = QuickActivation::kAfterwards;
  }
  return quick;
}

// Keeps a value that several instructions use in a register: GCC would load it for each of them.
CMF_HOST_DEVICE void keep_in_register(Vec<float>& value) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(value));
#elif defined(__SSE2__)
  __asm__("" : "+x"(value));
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#else
  (void)value;
#endif
}

}  // namespace CMF_ISA
}  // namespace cmf

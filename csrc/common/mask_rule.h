// Which elements of an average leave a bit for backward, by their activation.
#pragma once

#include "common/activation.h"
#include "common/pool_reduce.h"

namespace cmf {
namespace CMF_ISA {

template <class C>
inline MaskRule<C> mask_rule(Activation activation) {
  // torch's threshold_backward and hardtanh_backward let the gradient of a NaN pass, leaky_relu's
  // not
  return MaskRule<C>{activation == Activation::kRelu6 ? C(6) : static_cast<C>(__builtin_nan("")),
                     activation != Activation::kLeakyRelu};
}

}  // namespace CMF_ISA
}  // namespace cmf

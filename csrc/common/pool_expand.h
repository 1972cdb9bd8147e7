// A pooling window on the way back: what each of its elements takes of the window's gradient.
#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// Rules: what the element at `position` takes of its window's gradient. V is a vector or a scalar.

struct MaxRule {
  static constexpr bool kCodes = true;
  static constexpr bool kOne = true;  // one element of a window takes it
  template <class V, class M>
  CMF_HOST_DEVICE V take(V g, M code, int position) const {
    return code == position ? g : V{};
  }
};

struct AverageRule {
  static constexpr bool kCodes = false;
  static constexpr bool kOne = false;
  template <class V, class M>
  CMF_HOST_DEVICE V take(V g, M, int) const {
    return g;
  }
};

// Average of a piecewise linear activation: in full where the element's bit is set; where it is
// not, times the slope (leaky) or not at all.
template <class C, bool kLeaky>
struct MaskedRule {
  static constexpr bool kCodes = true;
  static constexpr bool kOne = false;
  C slope;
  template <class V, class M>
  CMF_HOST_DEVICE V take(V g, M code, int position) const {
    return (code & (M() + (1 << position))) != 0 ? g : (kLeaky ? g * slope : V{});
  }
};

}  // namespace CMF_ISA
}  // namespace cmf

// Division by a number that a launch knows and a kernel does not: a multiplication and a shift
// where 32 bits hold every dividend, the hardware's slow division of 64 bits where they don't.
#pragma once

#include "cuda/runtime.h"

namespace cmf {
namespace CMF_ISA {

struct Divider {
  int64_t divisor;
  unsigned magic;
  unsigned shift;
  bool narrow;

  // `most`: the largest dividend.
  static Divider make(int64_t divisor, int64_t most) {
    Divider d = {divisor, 0, 0, most < (int64_t{1} << 31) && divisor < (int64_t{1} << 31)};
    if (!d.narrow) return d;
    while ((int64_t{1} << d.shift) < divisor) ++d.shift;
    const uint64_t power = uint64_t{1} << d.shift;
    d.magic = static_cast<unsigned>(
        ((power - static_cast<uint64_t>(divisor)) << 32) / static_cast<uint64_t>(divisor) + 1);
    return d;
  }

  // For 0 <= value <= most.
  __device__ __forceinline__ int64_t divide(int64_t value) const {
    if (!narrow) return value / divisor;
    const unsigned n = static_cast<unsigned>(value);
    return (__umulhi(n, magic) + n) >> shift;
  }
};

}  // namespace CMF_ISA
}  // namespace cmf

// float32 as a sum of three bfloat16: 24 bits are 8 + 8 + 8.
#pragma once

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kParts = 3;

typedef VectorTypes<float>::Unsigned PartBits;

// The parts in the upper halves of their lanes.
struct Parts {
  PartBits bits[kParts];
};

// Each part is the rest's upper bits. Exact, but for values near the smallest normal number, whose
// parts matrix units take as 0. Infinity and NaN give NaN in some part.
CMF_HOST_DEVICE Parts cut_parts(Vec<float> value) {
  Parts parts;
  for (int i = 0; i < kParts; ++i) {
    parts.bits[i] = bit_cast<PartBits>(value) & 0xffff0000u;
    value -= bit_cast<Vec<float>>(parts.bits[i]);
  }
  return parts;
}

// The same with each part rounded to nearest: the products that are left out (those of the smaller
// parts) then have either sign where one factor is cut and the other rounded.
CMF_HOST_DEVICE Parts round_parts(Vec<float> value) {
  Parts parts;
  for (int i = 0; i < kParts; ++i) {
    const PartBits bits = bit_cast<PartBits>(value);
    const PartBits rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) & 0xffff0000u;
    const auto nan = is_nan(value);
    parts.bits[i] = nan ? PartBits{} + 0x7fc00000u : rounded;
    value -= bit_cast<Vec<float>>(parts.bits[i]);
  }
  return parts;
}

// Two numbers a word: the first in the lower half.
CMF_HOST_DEVICE PartBits pair_parts(PartBits first, PartBits second) {
  return (first >> 16) | second;
}

}  // namespace CMF_ISA
}  // namespace cmf

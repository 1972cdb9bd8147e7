// What a pooling window does with its elements: a running maximum with its position, or a running
// sum. V is Vec<C> with Mask<C>, or the scalar C with an integer.
#pragma once

#include "common/dtype.h"
#if !defined(CMF_CUDA)
#include "cpu/simd.h"
#endif

namespace cmf {
namespace CMF_ISA {

CMF_HOST_DEVICE int64_t as_mask(bool condition) { return -static_cast<int64_t>(condition); }
template <class M>
CMF_HOST_DEVICE M as_mask(M mask) {
  return mask;
}

// Set once for a call: which elements of an average leave a bit in its mask.
template <class C>
struct MaskRule {
  C upper;          // bits below this bound alone; NaN = no bound
  bool nan_passes;  // NaN leaves a bit
};

// The first maximum in row order wins, and NaN wins over everything, the last one of several: as
// PyTorch's `v > maximum || isnan(v)`. `code` is its position.
//
// One comparison an element: `bound` is the maximum, or infinity where that is NaN. An element at
// most the bound changes nothing; NaN is at most nothing.
template <class C, class V, class M, bool kTrack>
struct MaxReducer {
  V value = V();
  V bound = V();
  M code = M();

  MaxReducer() = default;
  CMF_HOST_DEVICE explicit MaxReducer(const MaskRule<C>&) {}
  static CMF_HOST_DEVICE V bound_of(V v) {
    const V infinity = V() + static_cast<C>(__builtin_inf());
    return v < infinity ? v : infinity;
  }
  CMF_HOST_DEVICE void begin(V v, int position) {
    value = v;
    bound = bound_of(v);
    if (kTrack) code = M() + position;
  }
  CMF_HOST_DEVICE void add(V v, int position) {
    const auto stays = v <= bound;
    value = stays ? value : v;
    bound = stays ? bound : bound_of(v);
    if (kTrack) code = stays ? code : M() + position;
  }
};

// Of scalars, two comparisons cost less than a register more.
template <class C, class M, bool kTrack>
struct MaxReducer<C, C, M, kTrack> {
  C value = C();
  M code = M();

  MaxReducer() = default;
  CMF_HOST_DEVICE explicit MaxReducer(const MaskRule<C>&) {}
  CMF_HOST_DEVICE void begin(C v, int position) {
    value = v;
    if (kTrack) code = M() + position;
  }
  CMF_HOST_DEVICE void add(C v, int position) {
    const bool takes = (v > value) | (v != v);
    value = takes ? v : value;
    if (kTrack) code = takes ? M() + position : code;
  }
};

// A sum in row order. `code` has a bit for each element on the positive side of its activation's
// kink.
template <class C, class V, class M, bool kTrack>
struct SumReducer {
  V value = V();
  M code = M();
  MaskRule<C> rule;

  SumReducer() = default;
  CMF_HOST_DEVICE explicit SumReducer(const MaskRule<C>& mask_rule) : rule(mask_rule) {}
  CMF_HOST_DEVICE void begin(V v, int position) {
    value = v;
    if (kTrack) code = bit(v, position);
  }
  CMF_HOST_DEVICE void add(V v, int position) {
    value += v;
    if (kTrack) code |= bit(v, position);
  }
  CMF_HOST_DEVICE M bit(V v, int position) const {
    M positive = as_mask(v > C(0));
    if (rule.nan_passes) positive |= as_mask(v != v);
    positive &= ~as_mask(v >= rule.upper);
    return positive & (M() + (1 << position));
  }
};

}  // namespace CMF_ISA
}  // namespace cmf

// Blocks of kLanes × kLanes values: rows become columns.
#pragma once

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

// rows[i][j] <-> rows[j][i], by log2(kLanes) rounds of interleaving each row with the one half a
// block further on.
template <class C>
CMF_HOST_DEVICE void transpose_block(Vec<C> (&rows)[kLanes<C>]) {
  constexpr int kHalf = kLanes<C> / 2;
  Vec<C> other[kLanes<C>];
#pragma GCC unroll 16
  for (int round = kLanes<C>; round > 1; round /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kHalf; ++i) {
      interleave<C>(rows[i], rows[i + kHalf], &other[2 * i], &other[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<C>; ++i) rows[i] = other[i];
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

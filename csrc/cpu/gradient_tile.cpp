#include "cpu/gradient_tile.h"

namespace cmf {
namespace CMF_ISA {
namespace {

template <int kRows>
GradientTile find(int rows, int vectors, bool add) {
  if (rows == kRows) {
    if (vectors == 1) return add ? gradient_tile<kRows, 1, true> : gradient_tile<kRows, 1, false>;
    return add ? gradient_tile<kRows, 2, true> : gradient_tile<kRows, 2, false>;
  }
  if constexpr (kRows > 1) return find<kRows - 1>(rows, vectors, add);
  return nullptr;
}

}  // namespace

GradientTile gradient_tile_for(int rows, int vectors, bool add) {
  return find<kGradientRows>(rows, vectors, add);
}

}  // namespace CMF_ISA
}  // namespace cmf

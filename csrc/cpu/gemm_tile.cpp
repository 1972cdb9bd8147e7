#include "cpu/gemm_tile.h"

namespace cmf {
namespace CMF_ISA {
namespace {

template <int kRows>
GemmTile find(int rows, int vectors) {
  if (rows == kRows) return vectors == 1 ? gemm_tile<kRows, 1> : gemm_tile<kRows, 2>;
  if constexpr (kRows > 1) return find<kRows - 1>(rows, vectors);
  return nullptr;
}

}  // namespace

GemmTile gemm_tile_for(int rows, int vectors) { return find<kGemmRows>(rows, vectors); }

}  // namespace CMF_ISA
}  // namespace cmf

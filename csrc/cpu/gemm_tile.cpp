#include "cpu/gemm_tile.h"

namespace cmf {
namespace CMF_ISA {
namespace {

struct Table {
  GemmTile kernels[kGemmRows + 1][kGemmVectors + 1] = {};

  constexpr Table() { fill<kGemmRows>(); }
  template <int kRows>
  constexpr void fill() {
    kernels[kRows][1] = gemm_tile<kRows, 1>;
    kernels[kRows][2] = gemm_tile<kRows, 2>;
    if constexpr (kRows > 1) fill<kRows - 1>();
  }
};
constexpr Table kTable;

}  // namespace

GemmTile gemm_tile_for(int rows, int vectors) { return kTable.kernels[rows][vectors]; }

}  // namespace CMF_ISA
}  // namespace cmf

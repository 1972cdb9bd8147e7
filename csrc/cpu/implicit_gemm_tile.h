// 32 positions by 32 filters, or what is left of them.
#pragma once

#include "cpu/implicit_gemm_layout.h"

namespace cmf {
namespace CMF_ISA {

struct ImplicitGemmTile {
  const uint16_t* x;       // a frame's, at the first position
  int64_t step;            // bytes from a position to the next
  int64_t part;            // elements from a part of x to the next
  const int64_t* offsets;  // [blocks]: elements of x
  int64_t blocks;
  int64_t taps;       // blocks of a row of x
  int64_t last_tap;   // the one that reads what no position before has read; -1 for none
  const uint16_t* w;  // a panel's
  const float* bias;  // [filters]
  float* z;           // [positions][kPanelFilters]
};

namespace implicit_gemm_detail {

// Into the second cache: what the next positions read first of this tap's row.
template <int kPositionTiles>
CMF_HOST_DEVICE void prefetch_positions(const uint16_t* x, const ImplicitGemmTile& t) {
  for (int part = 0; part < kParts; ++part) {
    const char* rows =
        reinterpret_cast<const char*>(x + part * t.part) + kPositionTiles * kTileRows * t.step;
#pragma GCC unroll 8
    for (int i = 0; i < kPositionTiles * kTileRows; ++i) {
      __builtin_prefetch(rows + i * kTileBytes, 0, 2);
    }
  }
}

constexpr int64_t kRow = kPanelFilters * int64_t(sizeof(float));

// Sums are tiles 0 to 3, x's tiles 4 and 5, w's 6 and 7.
template <int kPositionTiles, int kFilterTiles>
struct Products {
  static CMF_HOST_DEVICE void multiply(MatrixUnit& unit) {
    unit.multiply<0, 4, 6>();
    if (kFilterTiles > 1) unit.multiply<1, 4, 7>();
    if (kPositionTiles > 1) unit.multiply<2, 5, 6>();
    if (kPositionTiles > 1 && kFilterTiles > 1) unit.multiply<3, 5, 7>();
  }
  static CMF_HOST_DEVICE void load_x(MatrixUnit& unit, const uint16_t* x, int64_t step) {
    unit.load<4>(x, step);
    if (kPositionTiles > 1) {
      unit.load<5>(reinterpret_cast<const char*>(x) + kTileRows * step, step);
    }
  }
  static CMF_HOST_DEVICE void load_w(MatrixUnit& unit, const uint16_t* w) {
    unit.load<6>(w, kTileBytes);
    if (kFilterTiles > 1) unit.load<7>(w + kTileSize, kTileBytes);
  }
};

}  // namespace implicit_gemm_detail

// The six products of parts, the smallest first, in an order that loads each tile once but x0's.
template <int kPositionTiles, int kFilterTiles>
CMF_HOST_DEVICE void implicit_gemm_tile(MatrixUnit& unit, const ImplicitGemmTile& t) {
  using implicit_gemm_detail::kRow;
  using implicit_gemm_detail::prefetch_positions;
  typedef implicit_gemm_detail::Products<kPositionTiles, kFilterTiles> P;
  constexpr int64_t kPart = kPanelTiles * kTileSize;
  unit.load<0>(t.bias, 0);
  if (kFilterTiles > 1) unit.load<1>(t.bias + kTileColumns, 0);
  if (kPositionTiles > 1) unit.load<2>(t.bias, 0);
  if (kPositionTiles > 1 && kFilterTiles > 1) unit.load<3>(t.bias + kTileColumns, 0);
  const uint16_t* w = t.w;
  for (int64_t block = 0; block < t.blocks; ++block, w += kBlockSize) {
    const uint16_t* x = t.x + t.offsets[block];
    P::load_x(unit, x, t.step);
    P::load_w(unit, w + 2 * kPart);
    P::multiply(unit);  // x0 · w2
    if (block % t.taps == t.last_tap) prefetch_positions<kPositionTiles>(x, t);
    P::load_w(unit, w + kPart);
    P::multiply(unit);  // x0 · w1
    P::load_x(unit, x + t.part, t.step);
    P::multiply(unit);  // x1 · w1
    P::load_w(unit, w);
    P::multiply(unit);  // x1 · w0
    P::load_x(unit, x + 2 * t.part, t.step);
    P::multiply(unit);  // x2 · w0
    P::load_x(unit, x, t.step);
    P::multiply(unit);  // x0 · w0
  }
  unit.store<0>(t.z, kRow);
  if (kFilterTiles > 1) unit.store<1>(t.z + kTileColumns, kRow);
  float* below = t.z + kTileRows * kPanelFilters;
  if (kPositionTiles > 1) unit.store<2>(below, kRow);
  if (kPositionTiles > 1 && kFilterTiles > 1) unit.store<3>(below + kTileColumns, kRow);
}

// 64 positions by 16 filters: each tile of x is loaded for the one product that it is in.
CMF_HOST_DEVICE void implicit_gemm_column(MatrixUnit& unit, const ImplicitGemmTile& t) {
  using implicit_gemm_detail::kRow;
  constexpr int64_t kPart = kPanelTiles * kTileSize;
  const int64_t down = kTileRows * t.step;
  unit.load<0>(t.bias, 0);
  unit.load<1>(t.bias, 0);
  unit.load<2>(t.bias, 0);
  unit.load<3>(t.bias, 0);
  const auto multiply = [&](const uint16_t* x) {
    const char* rows = reinterpret_cast<const char*>(x);
    unit.load<4>(rows, t.step);
    unit.multiply<0, 4, 7>();
    unit.load<5>(rows + down, t.step);
    unit.multiply<1, 5, 7>();
    unit.load<6>(rows + 2 * down, t.step);
    unit.multiply<2, 6, 7>();
    unit.load<4>(rows + 3 * down, t.step);
    unit.multiply<3, 4, 7>();
  };
  const uint16_t* w = t.w;
  for (int64_t block = 0; block < t.blocks; ++block, w += kBlockSize) {
    const uint16_t* x = t.x + t.offsets[block];
    unit.load<7>(w + 2 * kPart, kTileBytes);
    multiply(x);
    unit.load<7>(w + kPart, kTileBytes);
    multiply(x);
    multiply(x + t.part);
    unit.load<7>(w, kTileBytes);
    multiply(x + t.part);
    multiply(x + 2 * t.part);
    multiply(x);
  }
  constexpr int64_t kDown = kTileRows * kPanelFilters;
  unit.store<0>(t.z, kRow);
  unit.store<1>(t.z + kDown, kRow);
  unit.store<2>(t.z + 2 * kDown, kRow);
  unit.store<3>(t.z + 3 * kDown, kRow);
}

}  // namespace CMF_ISA
}  // namespace cmf

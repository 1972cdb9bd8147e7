// Filters from one memory format to the other: [C][R · S] <-> [R · S][C] of each.
#include "cpu/transpose_matrices.h"

#include "cpu/parts.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kLeastPerThread = 32768;  // values

// Rows `part` of [rows][columns].
void transpose_rows(const float* source, float* target, int64_t rows, int64_t columns, Range part) {
  for (int64_t row = part.first; row < part.last; row += kV) {
    const int high = static_cast<int>(least(rows - row, kV));
    for (int64_t column = 0; column < columns; column += kV) {
      const int wide = static_cast<int>(least(columns - column, kV));
      Vec<float> block[kV];
#pragma GCC unroll 16
      for (int i = 0; i < kV; ++i) {
        block[i] = i < high ? load_lanes<float>(source + (row + i) * columns + column, wide)
                            : Vec<float>{};
      }
      transpose_block<float>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kV; ++i) {
        if (i < wide) store_lanes<float>(target + (column + i) * rows + row, block[i], high);
      }
    }
  }
}

}  // namespace

void transpose_matrices(const float* source, float* target, int64_t count, int64_t rows,
                        int64_t columns, int threads) {
  const int64_t size = rows * columns;
  const int64_t parts = most(least(count * size / kLeastPerThread, threads), 1);
  // a few matrices are cut, so that every thread has some of them
  const int64_t blocks = divide_up(rows, kV);
  const int64_t cuts = cuts_of(count, blocks, static_cast<int>(parts));
  in_parallel(count * cuts, static_cast<int>(parts), [&](Range units) {
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t i = unit / cuts;
      const Range part = part_of(blocks, static_cast<int>(unit % cuts), static_cast<int>(cuts));
      transpose_rows(source + i * size, target + i * size, rows, columns,
                     Range{part.first * kV, least(part.last * kV, rows)});
    }
    return true;
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

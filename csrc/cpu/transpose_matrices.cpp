// Filters from one memory format to the other: [C][R · S] <-> [R · S][C] of each.
#include "cpu/transpose_matrices.h"

#include "cpu/parts.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kLeastPerThread = 32768;  // values

void transpose_matrix(const float* source, float* target, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; row += kV) {
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
  in_parallel(count, static_cast<int>(parts), [&](Range part) {
    for (int64_t i = part.first; i < part.last; ++i) {
      transpose_matrix(source + i * size, target + i * size, rows, columns);
    }
    return true;
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

// A matrix turned by blocks of a vector.
#pragma once

#include "cpu/integers.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

// source [rows][columns] -> target [columns][rows]; the steps: floats from a row of each to its
// next.
inline void turn_matrix(const float* source, int64_t source_step, int64_t rows, int64_t columns,
                        float* target, int64_t target_step) {
  constexpr int kV = kLanes<float>;
  for (int64_t row = 0; row < rows; row += kV) {
    const int high = static_cast<int>(least(rows - row, kV));
    for (int64_t column = 0; column < columns; column += kV) {
      const int wide = static_cast<int>(least(columns - column, kV));
      Vec<float> block[kV];
#pragma GCC unroll 16
      for (int i = 0; i < kV; ++i) {
        block[i] = i < high ? load_lanes<float>(source + (row + i) * source_step + column, wide)
                            : Vec<float>{};
      }
      transpose_block<float>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kV; ++i) {
        if (i < wide) store_lanes<float>(target + (column + i) * target_step + row, block[i], high);
      }
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

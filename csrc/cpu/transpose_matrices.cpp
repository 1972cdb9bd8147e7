// Filters from one memory format to the other: [C][R · S] <-> [R · S][C] of each.
#include "cpu/transpose_matrices.h"

#include "cpu/parts.h"
#include "cpu/turn_matrix.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kLeastPerThread = 32768;  // values

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
      const int64_t first = part.first * kV;
      turn_matrix(source + i * size + first * columns, columns, least(part.last * kV, rows) - first,
                  columns, target + i * size + first, rows);
    }
    return true;
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

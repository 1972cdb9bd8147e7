// The divisors of an average pooling, along one pooled row.
#pragma once

#include "common/pool_window.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

// values[i] /= divisor; a power of two's reciprocal is exact, and a multiplication quicker.
template <class C>
CMF_HOST_DEVICE void divide_run(C* values, int64_t count, int64_t divisor) {
  const bool exact = (divisor & (divisor - 1)) == 0;
  const C by = exact ? C(1) / static_cast<C>(divisor) : static_cast<C>(divisor);
  int64_t i = 0;
  for (; i + kLanes<C> <= count; i += kLanes<C>) {
    const Vec<C> value = load<C>(values + i);
    store<C>(values + i, exact ? value * by : value / by);
  }
  for (; i < count; ++i) values[i] = exact ? values[i] * by : values[i] / by;
}

// Divides row [Q] or [Q, K] by the elements of its windows. `rows`: their vertical extent.
template <class C>
void divide_average_row(const PoolAxis& axis, const PoolCover& interior, int64_t rows,
                        bool count_include_pad, int64_t channels, C* row) {
  const auto divide_one = [&](int64_t q) __attribute__((always_inline)) {
    const int64_t columns = pool_extent(axis, pool_window(axis, q), count_include_pad);
    divide_run(row + q * channels, channels, rows * columns);
  };
  for (int64_t q = 0; q < interior.first; ++q) divide_one(q);
  divide_run(row + interior.first * channels, (interior.last - interior.first) * channels,
             rows * axis.size);
  for (int64_t q = interior.last; q < axis.out; ++q) divide_one(q);
}

}  // namespace CMF_ISA
}  // namespace cmf

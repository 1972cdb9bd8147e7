// Sums and squared deviations of channels, in either memory format.
//
// float32 within blocks, about the block's own mean, while they are in the first-level cache; the
// blocks' moments go together in float64. So a mean that is large beside the deviations costs no
// digits (Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance).
#pragma once

#include <stdint.h>

namespace cmf {
namespace CMF_ISA {

struct Moments {
  double sum;
  double squares;  // of the deviations from the mean
};

// Adds `count_b` values to `count_a` > 0 others.
inline void merge_moments(Moments& a, double count_a, Moments b, double count_b) {
  const double apart = count_b * a.sum - count_a * b.sum;
  a.squares += b.squares + apart * apart * (1 / (count_a * count_b * (count_a + count_b)));
  a.sum += b.sum;
}

// Of `runs` runs of `count` values, whose first are `stride` apart. Runs of up to 2048 values are
// few enough to stay in the first-level cache together.
Moments plane_moments(const float* x, int64_t count, int64_t runs, int64_t stride);

// Of each of the columns first .. last - 1 of x [pixels, channels]: sums and squares [last -
// first].
void pixel_moments(const float* x, int64_t pixels, int64_t channels, int64_t first, int64_t last,
                   double* sums, double* squares);

}  // namespace CMF_ISA
}  // namespace cmf

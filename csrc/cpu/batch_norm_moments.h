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

// Of `count_b` values more, to those of `count_a` > 0; of each of `channels`.
inline void merge_moments(double* sums_a, double* squares_a, double count_a, const double* sums_b,
                          const double* squares_b, double count_b, int64_t channels) {
  const double scale = 1 / (count_a * count_b * (count_a + count_b));
  for (int64_t c = 0; c < channels; ++c) {
    const double apart = count_b * sums_a[c] - count_a * sums_b[c];
    squares_a[c] += squares_b[c] + apart * apart * scale;
    sums_a[c] += sums_b[c];
  }
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

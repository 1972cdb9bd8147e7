// A pooled output cut into bands of rows, whose windows lie in a band of scratch memory.
#pragma once

#include "cpu/band_epilogue.h"
#include "cpu/parts.h"

namespace cmf {
namespace CMF_ISA {

constexpr int64_t kBandBytes = 32768;  // of scratch that stays in the first cache

// How a pooled output is cut into bands of rows, and which of the convolution's rows a band wants.
struct PooledBands {
  int64_t rows;   // of y, in a band
  int64_t count;  // of bands in an image
  int64_t most;   // rows of the convolution's output that a band wants

  // row_bytes: of a row of scratch
  PooledBands(const ActPool2dProblem& p, int64_t row_bytes) {
    const int64_t fitting = kBandBytes / row_bytes;
    rows = fitting < p.pool_height ? 1 : (fitting - p.pool_height) / p.pool_stride_height + 1;
    if (rows > p.out_height) rows = p.out_height;
    count = divide_up(p.out_height, rows);
    rows = divide_up(p.out_height, count);  // nearly equal ones
    most = (rows - 1) * p.pool_stride_height + p.pool_height;
    if (most > p.height) most = p.height;
  }
};

CMF_HOST_DEVICE Range band_rows(const ActPool2dProblem& p, const Band& band) {
  const PoolAxis axis = vertical_axis(p);
  const PoolWindow top = pool_window(axis, band.p_first);
  const PoolWindow bottom = pool_window(axis, band.p_last - 1);
  return Range{top.start + top.first, bottom.start + bottom.last};
}

CMF_HOST_DEVICE Band band_of(const ActPool2dProblem& p, const PooledBands& bands, int64_t n,
                             int64_t index, int64_t k_first, int most_channels) {
  Band band;
  band.n = n;
  band.p_first = index * bands.rows;
  band.p_last = band.p_first + bands.rows < p.out_height ? band.p_first + bands.rows : p.out_height;
  band.k_first = k_first;
  const int64_t left = p.channels - k_first;
  band.k_count = left < most_channels ? static_cast<int>(left) : most_channels;
  return band;
}

}  // namespace CMF_ISA
}  // namespace cmf

// The elementwise part of batch normalization and its gradient, in either memory format: of runs of
// one channel (planes), or of the channels first .. last - 1 of rows of `channels` values (pixels).
#pragma once

#include <stdint.h>

namespace cmf {
namespace CMF_ISA {

// z = (x - mean) · scale + shift, each [C]; y = act(z).
struct BatchNormAffine {
  const float* mean;
  const float* scale;
  const float* shift;
  float param;  // the activation's

  BatchNormAffine from(int64_t channel) const {
    return {mean + channel, scale + channel, shift + channel, param};
  }
};

// dx = scale · dz + slope · (x - mean) + offset, each [C]; dz = dy · act'(z).
struct BatchNormGradient {
  const float* slope;
  const float* offset;

  BatchNormGradient from(int64_t channel) const { return {slope + channel, offset + channel}; }
};

// `runs` runs of `count` values, whose first are `stride` apart.
struct PlaneRuns {
  int64_t count;
  int64_t runs;
  int64_t stride;
};

struct BatchNormRows {
  void (*plane_forward)(const BatchNormAffine& affine, const float* x, float* y, PlaneRuns planes);
  void (*pixel_forward)(const BatchNormAffine& affine, const float* x, float* y, int64_t pixels,
                        int64_t channels, int64_t first, int64_t last);
  // the sums of dz and of dz · (x - mean)
  void (*plane_sums)(const BatchNormAffine& affine, const float* x, const float* dy,
                     PlaneRuns planes, double* dz_sum, double* dot);
  void (*pixel_sums)(const BatchNormAffine& affine, const float* x, const float* dy, int64_t pixels,
                     int64_t channels, int64_t first, int64_t last, double* dz_sums, double* dots);
  void (*plane_gradient)(const BatchNormAffine& affine, const BatchNormGradient& gradient,
                         const float* x, const float* dy, float* dx, PlaneRuns planes);
  void (*pixel_gradient)(const BatchNormAffine& affine, const BatchNormGradient& gradient,
                         const float* x, const float* dy, float* dx, int64_t pixels,
                         int64_t channels, int64_t first, int64_t last);
};

const BatchNormRows& batch_norm_rows(int32_t activation);

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/few_pixels.h"

#include "cpu/act_row.h"
#include "cpu/band_epilogue.h"
#include "cpu/integers.h"
#include "cpu/linear.h"
#include "cpu/pointwise_pack.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {

bool takes_few_pixels(const ConvActPool2dProblem& p) {
  return p.height == 1 && p.width == 1 && p.pool.batch <= kMostLinearRows && p.groups == 1 &&
         p.pool.pool == Pool::kNone;
}

bool few_pixels_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  const int64_t images = p.pool.batch, channels = p.in_channels, filters = p.pool.channels;
  const int64_t y_step = p.pool.channels_last ? y_pixel(p.pool, t) : p.pool.image_channels;
  const PointwiseInput input = input_of(t);
  Scratch<float> changed, sums;
  const float* x = input.x;
  if (input.scale || p.image_channels != channels) {
    if (!changed.allocate(images * channels)) return false;
    for (int64_t n = 0; n < images; ++n) {
      const float* image = x + n * p.image_channels;
      const float* scale = input.scale_at(p, n, 0);
      for (int64_t c = 0; c < channels; ++c) {
        float value = image[c];
        if (scale) value = value * scale[c] + (input.shift ? input.shift[c] : -0.0f);
        changed.data[n * channels + c] = input.shift && value < 0.0f ? 0.0f : value;
      }
    }
    x = changed.data;
  }
  float* y = static_cast<float*>(t.y);
  if (y_step != filters) {
    if (!sums.allocate(images * filters)) return false;
    y = sums.data;
  }
  linear_forward(LinearProblem{images, channels, filters}, x, static_cast<const float*>(t.w),
                 static_cast<const float*>(t.bias), y, threads);
  for (int64_t n = 0; n < images; ++n) {
    activate_row<float, float>(p.pool, y + n * filters, RowBias<float>{-0.0f, nullptr},
                               static_cast<float*>(t.y) + n * y_step, filters);
  }
  return true;
}

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/winograd_input_gradient.h"

#include "cpu/gradient_frame.h"

namespace cmf {
namespace CMF_ISA {

void direct_input_gradient(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int64_t n,
                           int64_t h, int64_t w, const PhaseVector& vector, int taps,
                           float* target) {
  const FilterLayout layout(p, t.w_channels_last);
  const float* weights = static_cast<const float*>(t.w);
  for (int lane = 0; lane < kLanes<float>; ++lane) target[lane] = 0;
  const int64_t r_last = least(p.kernel_height, vector.tap_height + p.stride_height * taps);
  const int64_t s_last = least(p.kernel_width, vector.tap_width + p.stride_width * taps);
  for (int64_t r = vector.tap_height; r < r_last; ++r) {
    const int64_t row = h + p.pad_height - r;
    if (row < 0 || row % p.stride_height != 0 || row / p.stride_height >= p.pool.height) continue;
    for (int64_t s = vector.tap_width; s < s_last; ++s) {
      const int64_t column = w + p.pad_width - s;
      if (column < 0 || column % p.stride_width != 0 || column / p.stride_width >= p.pool.width) {
        continue;
      }
      const int64_t tap = (r * p.kernel_width + s) * layout.tap;
      for (int64_t k = 0; k < p.pool.channels; ++k) {
        const float g =
            gradient_at(p.pool, t, n, k, row / p.stride_height, column / p.stride_width);
        const float* filter = weights + layout.at(k, vector.first) + tap;
        for (int lane = 0; lane < vector.lanes; ++lane) {
          target[lane] += g * filter[lane * layout.channel];
        }
      }
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/winograd_direct.h"

#include "cpu/filter_layout.h"

namespace cmf {
namespace CMF_ISA {

float direct_output(const ConvActPool2dProblem& p, const ConvForwardTensors& tensors, int64_t n,
                    int64_t row, int64_t column, int64_t channel) {
  const int64_t x_channel = p.x_channels_last ? 1 : p.height * p.width;
  const int64_t x_column = p.x_channels_last ? p.image_channels : 1;
  const float* x = static_cast<const float*>(tensors.x) + n * p.image_channels * p.height * p.width;
  const FilterLayout layout(p, tensors.w_channels_last);
  const float* w = static_cast<const float*>(tensors.w);
  const int64_t h_first = row * p.stride_height - p.pad_height;
  const int64_t w_first = column * p.stride_width - p.pad_width;
  float sum = 0;
  for (int64_t c = 0; c < p.in_channels; ++c) {
    const float* taps = w + layout.at(channel, c);
    for (int64_t r = 0; r < p.kernel_height; ++r) {
      for (int64_t s = 0; s < p.kernel_width; ++s, taps += layout.tap) {
        const int64_t h = h_first + r * p.dilation_height;
        const int64_t v = w_first + s * p.dilation_width;
        if (h < 0 || h >= p.height || v < 0 || v >= p.width) continue;
        sum += x[c * x_channel + (h * p.width + v) * x_column] * *taps;
      }
    }
  }
  return sum;
}

}  // namespace CMF_ISA
}  // namespace cmf

// dx: the rows are input pixels of one phase, those whose row and column leave the same remainder
// when divided by the convolution's stride. Only they meet the same taps, so none of the products
// with the zeros between strided outputs is computed.
#include <algorithm>
#include <numeric>

#include "cuda/conv_host.h"
#include "cuda/conv_rows.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr char kName[] = "conv_input_gradient";

template <Multiply M>
void launch_phase(const RowsProblem& p, bool large, cudaStream_t stream) {
  if (!large) return launch_tiles<M, ChunkedOperands<M, 64, true>, 64>(kName, p, stream);
  launch_tiles<M, ChunkedOperands<M, 128, true>, 128>(kName, p, stream);
}

// The taps of one axis that meet the pixels phase, phase + stride, ...: first, first + step, ...
struct PhaseTaps {
  int64_t pixels;
  int64_t first, step, count;
  int64_t shift;  // pixel i · stride + phase and the first tap meet in output i + shift,
  int64_t next;   // and the next tap `next` further

  PhaseTaps(int64_t phase, int64_t length, int64_t taps, int64_t stride, int64_t pad,
            int64_t dilation)
      : pixels((length - phase + stride - 1) / stride), first(0), count(0), shift(0) {
    step = stride / std::gcd(stride, dilation);
    next = -(step * dilation / stride);
    while (first < std::min(step, taps) && (phase + pad - first * dilation) % stride != 0) ++first;
    if (first >= std::min(step, taps)) return;
    count = (taps - first + step - 1) / step;
    shift = (phase + pad - first * dilation) / stride;
  }
};

}  // namespace

void conv_input_gradient(const ConvActPool2dProblem& problem, const void* gradient,
                         const void* index, const void* weights, void* dx, bool tf32, int tile_rows,
                         void* stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const ActPool2dProblem& pool = problem.pool;
  const int64_t filters = conv_filters_row(problem), channels = problem.in_channels;
  const int64_t kernel_width = problem.kernel_width;
  const int window = pooled(problem) ? 2 : 1;
  RowsProblem p = {};
  p.source = gradient;
  p.index = static_cast<const uint8_t*>(index);
  p.weights = weights;
  p.image = pool.out_height * pool.out_width * filters;
  p.stride_h = static_cast<int32_t>(pool.out_width * filters);
  p.stride_w = static_cast<int32_t>(filters);
  p.height = static_cast<int32_t>(window * pool.out_height);
  p.width = static_cast<int32_t>(window * pool.out_width);
  p.scale_h = p.scale_w = 1;
  p.chunks = static_cast<int32_t>(filters / vector_elements(problem));
  p.weights_row = static_cast<int32_t>(problem.kernel_height * kernel_width * filters);
  p.expand = expand_of(problem);
  p.slope = slope_of(problem);
  p.columns = static_cast<int32_t>(channels);
  p.window = Window::kNone;
  p.factor = factor_of(problem);
  p.activation = static_cast<int32_t>(Activation::kIdentity);
  p.y_channels_last = problem.x_channels_last;
  const int64_t stride_w = problem.x_channels_last ? channels : 1;
  const int64_t stride_h = stride_w * problem.width;
  p.y_image = channels * problem.height * problem.width;
  p.y_column = problem.x_channels_last ? 1 : problem.height * problem.width;
  p.y_row = stride_h * problem.stride_height;
  p.y_pixel = stride_w * problem.stride_width;

  for (int64_t phase_h = 0; phase_h < std::min(problem.stride_height, problem.height); ++phase_h) {
    const PhaseTaps h(phase_h, problem.height, problem.kernel_height, problem.stride_height,
                      problem.pad_height, problem.dilation_height);
    for (int64_t phase_w = 0; phase_w < std::min(problem.stride_width, problem.width); ++phase_w) {
      const PhaseTaps w(phase_w, problem.width, kernel_width, problem.stride_width,
                        problem.pad_width, problem.dilation_width);
      const bool some = h.count > 0 && w.count > 0;
      p.taps_h = static_cast<int32_t>(some ? h.count : 0);
      p.taps_w = static_cast<int32_t>(some ? w.count : 0);
      p.shift_h = static_cast<int32_t>(h.shift);
      p.shift_w = static_cast<int32_t>(w.shift);
      p.step_h = static_cast<int32_t>(h.next);
      p.step_w = static_cast<int32_t>(w.next);
      p.weights_first = static_cast<int32_t>((h.first * kernel_width + w.first) * filters);
      p.weights_tap_h = static_cast<int32_t>(h.step * kernel_width * filters);
      p.weights_tap_w = static_cast<int32_t>(w.step * filters);
      p.windows = pool.batch * h.pixels * w.pixels;
      p.plane = make_divisor(h.pixels * w.pixels);
      p.row = make_divisor(w.pixels);
      p.y = static_cast<char*>(dx) + (phase_h * stride_h + phase_w * stride_w) * pool.itemsize;
      p.y_runs = writes_runs(p, vector_elements(problem));
      if (p.windows == 0) continue;
      const bool large = large_tiles(p, tile_rows);
      switch (conv_multiply(problem, tf32)) {
        case Multiply::kBFloat16:
          launch_phase<Multiply::kBFloat16>(p, large, stream);
          break;
        case Multiply::kHalf:
          launch_phase<Multiply::kHalf>(p, large, stream);
          break;
        case Multiply::kTf32:
          launch_phase<Multiply::kTf32>(p, large, stream);
          break;
        case Multiply::kFloat32:
          launch_phase<Multiply::kFloat32>(p, large, stream);
          break;
      }
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

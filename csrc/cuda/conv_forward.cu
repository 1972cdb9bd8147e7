#include <math.h>

#include "cuda/conv_host.h"
#include "cuda/conv_rows.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr char kName[] = "conv_forward";

template <Multiply M>
void launch_forward(const RowsProblem& p, bool large, cudaStream_t stream) {
  if (!p.chunks) return launch_tiles<M, GatheredOperands<M, 64>, 64>(kName, p, stream);
  if (!large) return launch_tiles<M, ChunkedOperands<M, 64, false>, 64>(kName, p, stream);
  launch_tiles<M, ChunkedOperands<M, 128, false>, 128>(kName, p, stream);
}

void choose_window(const ActPool2dProblem& pool, RowsProblem* p) {
  const Activation activation = static_cast<Activation>(pool.activation);
  if (pool.pool == Pool::kNone) {
    p->window = Window::kNone;
  } else if (pool.pool == Pool::kMax) {
    p->window = pool.monotone ? Window::kMaximum : Window::kMaximumOf;
  } else if (pool.saved == Saved::kNothing || pool.saved == Saved::kMask) {
    p->window = Window::kAverage;
    p->activation = static_cast<int32_t>(Activation::kIdentity);
    const bool leaky = activation == Activation::kLeakyRelu;
    p->bent.below = leaky ? p->param : 1.0f;
    p->bent.cap = activation == Activation::kRelu6 ? 6.0f : NAN;
    p->bent.dead = activation == Activation::kRelu || activation == Activation::kRelu6;
  } else {
    p->window = Window::kAverageOf;
  }
}

}  // namespace

void conv_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& t, bool tf32,
                  int tile_rows, void* stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const ActPool2dProblem& pool = problem.pool;
  const int64_t channels = problem.in_channels;
  const bool chunks = conv_reads_chunks(problem), last = problem.x_channels_last;
  RowsProblem p = {};
  p.source = t.x;
  p.weights = t.w;
  p.image = channels * problem.height * problem.width;
  p.stride_h = static_cast<int32_t>(last ? problem.width * channels : problem.width);
  p.stride_w = static_cast<int32_t>(last ? channels : 1);
  p.stride_c = static_cast<int32_t>(last ? 1 : problem.height * problem.width);
  p.height = static_cast<int32_t>(problem.height);
  p.width = static_cast<int32_t>(problem.width);
  p.scale_h = static_cast<int32_t>(problem.stride_height);
  p.scale_w = static_cast<int32_t>(problem.stride_width);
  p.shift_h = static_cast<int32_t>(-problem.pad_height);
  p.shift_w = static_cast<int32_t>(-problem.pad_width);
  p.step_h = static_cast<int32_t>(problem.dilation_height);
  p.step_w = static_cast<int32_t>(problem.dilation_width);
  p.taps_h = static_cast<int32_t>(problem.kernel_height);
  p.taps_w = static_cast<int32_t>(problem.kernel_width);
  const int vector = vector_elements(problem);
  p.chunks = chunks ? static_cast<int32_t>(channels / vector) : 0;
  p.weights_row = static_cast<int32_t>(channels * problem.kernel_height * problem.kernel_width);
  p.weights_tap_w = static_cast<int32_t>(channels);
  p.weights_tap_h = static_cast<int32_t>(channels * problem.kernel_width);
  p.wide_weights = p.weights_row % vector == 0;

  p.windows = pool.batch * pool.out_height * pool.out_width;
  p.plane = make_divisor(pool.out_height * pool.out_width);
  p.row = make_divisor(pool.out_width);
  p.columns = static_cast<int32_t>(pool.channels);
  p.y = t.y;
  p.preactivation = t.preactivation;
  p.kept = static_cast<uint8_t*>(t.index);
  p.bias = t.bias;
  p.y_channels_last = pool.channels_last;
  p.y_image = pool.channels * pool.out_height * pool.out_width;
  p.y_column = pool.channels_last ? 1 : pool.out_height * pool.out_width;
  p.y_pixel = pool.channels_last ? pool.channels : 1;
  p.y_row = p.y_pixel * pool.out_width;
  p.kept_row = static_cast<int32_t>(conv_filters_row(problem));
  p.activation = pool.activation;
  p.param = static_cast<float>(pool.activation_param);
  p.factor = 1;
  choose_window(pool, &p);
  p.y_runs = writes_runs(p, vector);
  if (p.windows == 0) return;

  const bool large = large_tiles(p, tile_rows);
  switch (conv_multiply(problem, tf32)) {
    case Multiply::kBFloat16:
      return launch_forward<Multiply::kBFloat16>(p, large, stream);
    case Multiply::kHalf:
      return launch_forward<Multiply::kHalf>(p, large, stream);
    case Multiply::kTf32:
      return launch_forward<Multiply::kTf32>(p, large, stream);
    case Multiply::kFloat32:
      return launch_forward<Multiply::kFloat32>(p, large, stream);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

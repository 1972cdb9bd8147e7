#include <algorithm>

#include "cuda/conv_columns.h"
#include "cuda/conv_host.h"
#include "cuda/conv_sums.h"
#include "cuda/launch.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kBlocksWanted = 512;  // a few for each multiprocessor of a large device
constexpr int64_t kLeastSteps = 8;      // that a split must have to be worth its partial sum

struct Splits {
  int64_t count;
  int64_t windows;  // of one
};

// From shapes alone, so that the order of the sums, and with it every bit, is the same every time.
Splits split_windows(const ConvActPool2dProblem& problem) {
  const ActPool2dProblem& pool = problem.pool;
  const int64_t columns = problem.in_channels * problem.kernel_height * problem.kernel_width;
  const int64_t tiles = ((pool.channels + kFilterRows - 1) / kFilterRows) *
                        ((columns + kTileColumns - 1) / kTileColumns);
  const int64_t step_windows = 4 * vector_elements(problem) / (pooled(problem) ? 4 : 1);
  const int64_t windows = pool.batch * pool.out_height * pool.out_width;
  const int64_t steps = std::max<int64_t>(1, (windows + step_windows - 1) / step_windows);
  const int64_t wanted = std::max<int64_t>(1, kBlocksWanted / tiles);
  const int64_t steps_a_split =
      std::max((steps + wanted - 1) / wanted, std::min(kLeastSteps, steps));
  return Splits{(steps + steps_a_split - 1) / steps_a_split, steps_a_split * step_windows};
}

template <Multiply M>
void launch_pixels(const WeightGradientProblem& p, bool chunks, int64_t splits,
                   cudaStream_t stream) {
  const int64_t tiles = int64_t{(p.filters + kFilterRows - 1) / kFilterRows} *
                        ((p.columns + kTileColumns - 1) / kTileColumns);
  const Grid grid = {dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits)),
                     dim3(kTileThreads), kColumnsSharedBytes, stream};
  launch("conv_weight_gradient", chunks ? multiply_pixels<M, true> : multiply_pixels<M, false>,
         grid, p);
}

}  // namespace

int64_t conv_weight_splits(const ConvActPool2dProblem& problem) {
  return split_windows(problem).count;
}

void conv_weight_gradient(const ConvActPool2dProblem& problem, const void* gradient,
                          const void* index, const void* x, float* partial, void* dw,
                          const int64_t (&dw_strides)[3], bool tf32, void* stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const ActPool2dProblem& pool = problem.pool;
  const int64_t channels = problem.in_channels;
  const int64_t taps = problem.kernel_height * problem.kernel_width;
  const bool chunks = conv_reads_chunks(problem), last = problem.x_channels_last;
  const Splits splits = split_windows(problem);
  WeightGradientProblem p = {};
  p.gradient = gradient;
  p.index = static_cast<const uint8_t*>(index);
  p.x = x;
  p.partial = partial;
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
  p.columns = static_cast<int32_t>(channels * taps);
  p.filters = static_cast<int32_t>(pool.channels);
  p.filters_row = static_cast<int32_t>(conv_filters_row(problem));
  p.expand = expand_of(problem);
  p.slope = slope_of(problem);
  p.windows = static_cast<int32_t>(pool.batch * pool.out_height * pool.out_width);
  p.windows_a_split = static_cast<int32_t>(splits.windows);
  p.plane = make_divisor(pool.out_height * pool.out_width);
  p.row = make_divisor(pool.out_width);
  switch (conv_multiply(problem, tf32)) {
    case Multiply::kBFloat16:
      launch_pixels<Multiply::kBFloat16>(p, chunks, splits.count, stream);
      break;
    case Multiply::kHalf:
      launch_pixels<Multiply::kHalf>(p, chunks, splits.count, stream);
      break;
    case Multiply::kTf32:
      launch_pixels<Multiply::kTf32>(p, chunks, splits.count, stream);
      break;
    case Multiply::kFloat32:
      launch_pixels<Multiply::kFloat32>(p, chunks, splits.count, stream);
      break;
  }
  PartialSums sums = {};
  sums.partial = partial;
  sums.out = dw;
  sums.rows = pool.channels;
  sums.outer = chunks ? taps : channels;
  sums.inner = chunks ? channels : taps;
  sums.parts = splits.count;
  sums.stride_row = dw_strides[0];
  sums.stride_outer = dw_strides[chunks ? 2 : 1];
  sums.stride_inner = dw_strides[chunks ? 1 : 2];
  sums.factor = factor_of(problem);
  sums.dtype = pool.dtype;
  add_partial_sums(sums, stream);
}

}  // namespace CMF_ISA
}  // namespace cmf

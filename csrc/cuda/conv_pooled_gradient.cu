// The pooled gradient before it is expanded: dy times the activation's derivative, filters fastest;
// and the bias gradient, which is its sum.
#include <algorithm>

#include "cuda/activation_runs.h"
#include "cuda/conv_host.h"
#include "cuda/conv_sums.h"
#include "cuda/launch.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kTile = 32;  // windows and filters
constexpr int kLines = 8;  // of threads
constexpr int64_t kMostParts = 512;

struct PooledGradientProblem {
  const void* dy;  // [N, K, P, Q] by strides
  const void* saved;
  const uint8_t* index;  // the mask [windows, filters_row]
  void* gradient;        // [windows, filters_row], or null
  float* partial;        // [parts, K], or null
  int64_t image;
  int64_t pixel;
  int64_t column;
  int32_t windows;
  int32_t windows_a_part;  // a multiple of kTile
  int32_t filters;
  int32_t filters_row;
  Divisor plane;
  Saved kind;
  bool channels_last;
  Expand expand;
  float slope;
  int32_t activation;
  float param;
};

// How much of a window's gradient reaches the bias, over the four pixels of the window.
__device__ __forceinline__ float over_window(const PooledGradientProblem& p, float gradient,
                                             int64_t at) {
  if (p.expand == Expand::kEverywhere) return 4 * gradient;
  if (p.expand != Expand::kMasked) return gradient;
  const int passing = __popc(p.index[at] & 15);
  // where nothing passes and the slope is 0, no infinity does either
  const float whole = passing ? static_cast<float>(passing) * gradient : 0.0f;
  const bool bent = passing < 4 && p.slope != 0;
  return bent ? whole + static_cast<float>(4 - passing) * (gradient * p.slope) : whole;
}

template <class T>
__global__ void __launch_bounds__(kTile* kLines)
    differentiate(const __grid_constant__ PooledGradientProblem p) {
  CMF_SHARED(float[kTile][kTile + 1], tile);
  const int lane = threadIdx.x % kTile, line = threadIdx.x / kTile;
  const int first_filter = static_cast<int>(blockIdx.x) * kTile;
  const int first = static_cast<int>(blockIdx.y) * p.windows_a_part;
  const int end = min(first + p.windows_a_part, p.windows);
  float sum = 0;
  for (int start = first; start < end; start += kTile) {
    // 1. In the order in which dy and what was saved lie.
    for (int i = line; i < kTile; i += kLines) {
      const int window = start + (p.channels_last ? i : lane);
      const int filter = first_filter + (p.channels_last ? lane : i);
      float value = 0;
      if (window < end && filter < p.filters) {
        const uint32_t n = divide(window, p.plane);
        const int64_t at =
            n * p.image + (window - n * p.plane.divisor) * p.pixel + filter * p.column;
        value = to_compute<float>(static_cast<const T*>(p.dy)[at]);
        if (p.kind != Saved::kNothing) {
          const Activation activation = static_cast<Activation>(p.activation);
          const float saved = to_compute<float>(static_cast<const T*>(p.saved)[at]);
          value = differentiate(activation, p.kind, p.param, saved, value);
        }
      }
      tile[window - start][filter - first_filter] = value;
    }
    __syncthreads();
    // 2. Filters side by side.
    for (int i = line; i < kTile; i += kLines) {
      const int window = start + i, filter = first_filter + lane;
      if (window >= end || filter >= p.filters_row) continue;
      const int64_t at = int64_t{window} * p.filters_row + filter;
      if (p.gradient) static_cast<T*>(p.gradient)[at] = from_compute<T>(tile[i][lane]);
      if (filter < p.filters) sum += over_window(p, tile[i][lane], at);
    }
    __syncthreads();
  }
  if (!p.partial) return;
  tile[line][lane] = sum;
  __syncthreads();
  if (line != 0 || first_filter + lane >= p.filters) return;
  for (int i = 1; i < kLines; ++i) sum += tile[i][lane];
  p.partial[int64_t{blockIdx.y} * p.filters + first_filter + lane] = sum;
}

int64_t part_windows(const ConvActPool2dProblem& problem) {
  const ActPool2dProblem& pool = problem.pool;
  const int64_t windows = pool.batch * pool.out_height * pool.out_width;
  const int64_t tiles = std::max<int64_t>(1, (windows + kTile - 1) / kTile);
  const int64_t parts = std::min(kMostParts, tiles);
  return (tiles + parts - 1) / parts * kTile;
}

template <class T>
void launch_pooled(const PooledGradientProblem& p, int64_t parts, cudaStream_t stream) {
  const Grid grid = {dim3(static_cast<unsigned>((p.filters_row + kTile - 1) / kTile),
                          static_cast<unsigned>(parts)),
                     dim3(kTile * kLines), 0, stream};
  launch("conv_pooled_gradient", differentiate<T>, grid, p);
}

}  // namespace

int64_t conv_bias_rows(const ConvActPool2dProblem& problem) {
  const ActPool2dProblem& pool = problem.pool;
  const int64_t windows = pool.batch * pool.out_height * pool.out_width;
  const int64_t part = part_windows(problem);
  return std::max<int64_t>(1, (windows + part - 1) / part);
}

void conv_pooled_gradient(const ConvActPool2dProblem& problem, const void* dy, const void* saved,
                          const void* index, void* gradient, float* partial, void* dbias,
                          void* stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const ActPool2dProblem& pool = problem.pool;
  PooledGradientProblem p = {};
  p.dy = dy;
  p.saved = saved;
  p.index = static_cast<const uint8_t*>(index);
  p.gradient = gradient;
  p.partial = dbias ? partial : nullptr;
  p.image = pool.channels * pool.out_height * pool.out_width;
  p.pixel = pool.channels_last ? pool.channels : 1;
  p.column = pool.channels_last ? 1 : pool.out_height * pool.out_width;
  p.windows = static_cast<int32_t>(pool.batch * pool.out_height * pool.out_width);
  p.windows_a_part = static_cast<int32_t>(part_windows(problem));
  p.filters = static_cast<int32_t>(pool.channels);
  p.filters_row = static_cast<int32_t>(conv_filters_row(problem));
  p.plane = make_divisor(pool.out_height * pool.out_width);
  p.kind = saved ? pool.saved : Saved::kNothing;
  p.channels_last = pool.channels_last;
  p.expand = expand_of(problem);
  p.slope = slope_of(problem);
  p.activation = pool.activation;
  p.param = static_cast<float>(pool.activation_param);
  const int64_t parts = conv_bias_rows(problem);
  switch (static_cast<DType>(pool.dtype)) {
    case DType::kBFloat16:
      launch_pooled<BFloat16>(p, parts, stream);
      break;
    case DType::kFloat16:
      launch_pooled<Half>(p, parts, stream);
      break;
    default:
      launch_pooled<float>(p, parts, stream);
  }
  if (!dbias) return;
  PartialSums sums = {};
  sums.partial = partial;
  sums.out = dbias;
  sums.rows = pool.channels;
  sums.outer = sums.inner = 1;
  sums.parts = parts;
  sums.stride_row = 1;
  sums.factor = factor_of(problem);
  sums.dtype = pool.dtype;
  add_partial_sums(sums, stream);
}

}  // namespace CMF_ISA
}  // namespace cmf

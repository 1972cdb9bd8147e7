// What the kernels of the epilogue, both ways, know of a problem.
#pragma once

#include "common/act_pool2d_problem.h"
#include "common/mask_rule.h"
#include "common/pool_window.h"
#include "cuda/activation_runs.h"
#include "cuda/launch.h"
#include "cuda/tiling.h"

namespace cmf {
namespace CMF_ISA {

// Blocks that a multiprocessor must have room for, with registers enough for each. A thousand
// threads whose loads of 16 bytes are on their way keep the memory busy; doubles take twice the
// registers.
template <class T>
constexpr int kBlocksOfElements = sizeof(T) == 8 ? 4 : 5;
template <class T>
constexpr int kBlocksOfWindows = sizeof(T) == 8 ? 2 : 4;
template <class T>
constexpr int kBlocksOfAny = sizeof(T) == 8 ? 2 : 3;

// Elements of a thread's run: of 16 bytes, but of channels whose windows are pooled no more than
// there are registers for. Doubles one by one: 8 bytes an access, and half the kernels to compile.
template <class T>
constexpr int kFlatRun = sizeof(T) == 8 ? 1 : kRunOf<T>;
template <class T>
constexpr int kChannelRun = sizeof(T) == 8 ? 1 : 4;

// C: the type of the arithmetic.
template <class C>
struct PoolShape {
  PoolAxisOf<int> vertical;
  PoolAxisOf<int> horizontal;
  int64_t interleaved;  // channels of an image's element: 1, or K
  Activation activation;
  Saved saved;
  bool maximum;          // else an average
  bool activates_first;  // before pooling
  bool count_include_pad;
  int index_itemsize;
  C param;
  MaskRule<C> rule;
  Tiling tiling;

  // Elements before (row, column) of an image.
  __device__ __forceinline__ int64_t at_input(int64_t image, int64_t row, int64_t column) const {
    return ((image * vertical.length + row) * horizontal.length + column) * interleaved;
  }
  __device__ __forceinline__ int64_t at_output(int64_t image, int64_t row, int64_t column) const {
    return ((image * vertical.out + row) * horizontal.out + column) * interleaved;
  }
};

template <class C>
PoolShape<C> make_pool_shape(const ActPool2dProblem& p, const Tiling& tiling) {
  const auto axis = [](int64_t length, int64_t out, int64_t size, int64_t stride, int64_t pad) {
    return PoolAxisOf<int>{static_cast<int>(length), static_cast<int>(out), static_cast<int>(size),
                           static_cast<int>(stride), static_cast<int>(pad)};
  };
  PoolShape<C> shape = {};
  shape.vertical =
      axis(p.height, p.out_height, p.pool_height, p.pool_stride_height, p.pool_pad_height);
  shape.horizontal =
      axis(p.width, p.out_width, p.pool_width, p.pool_stride_width, p.pool_pad_width);
  shape.interleaved = tiling.interleaved;
  shape.activation = static_cast<Activation>(p.activation);
  shape.saved = p.saved;
  shape.maximum = p.pool == Pool::kMax;
  shape.activates_first =
      !(p.pool == Pool::kMax && p.monotone) && shape.activation != Activation::kIdentity;
  shape.count_include_pad = p.count_include_pad;
  shape.index_itemsize = p.index_itemsize;
  shape.param = static_cast<C>(p.activation_param);
  shape.rule = mask_rule<C>(shape.activation);
  shape.tiling = tiling;
  return shape;
}

// The bias of a thread's channels; -0 where there is none: x + -0.0 is x for every x.
template <class T, class C, int N>
__device__ __forceinline__ void load_bias(const Tiling& t, const T* bias, int64_t channel,
                                          C (&values)[N]) {
  CMF_UNROLL(N)
  for (int v = 0; v < N; ++v) values[v] = C(-0.0);
  if (!bias) return;
  CMF_UNROLL(N)
  for (int v = 0; v < N; ++v) {
    const int64_t c = t.channels_last ? channel + v : channel;
    if (c < t.by_channels.divisor) values[v] = to_compute<C>(bias[c]);
  }
}

// How many channels, or elements of a row, a thread can take at once of tensors at these addresses.
inline bool vectors_fit(const ActPool2dProblem& p, int64_t run, const void* const* addresses,
                        int count) {
  for (int i = 0; i < count; ++i) {
    if (!is_aligned(addresses[i], 16)) return false;
  }
  if (run == 1) return false;
  if (p.channels_last) return p.channels % run == 0;
  return p.pool == Pool::kNone && p.height * p.width % run == 0;
}

// Contiguous windows of 2×2 that tile the plane's rows, some side by side: a thread takes whole
// runs of two rows.
inline bool is_pairs(const ActPool2dProblem& p, int64_t run, const void* const* addresses,
                     int count) {
  for (int i = 0; i < count; ++i) {
    if (!is_aligned(addresses[i], 16)) return false;
  }
  return !p.channels_last && p.pool != Pool::kNone && p.pool_height == 2 && p.pool_width == 2 &&
         p.pool_stride_height == 2 && p.pool_stride_width == 2 && p.pool_pad_height == 0 &&
         p.pool_pad_width == 0 && p.width % run == 0 && 2 * p.out_width == p.width &&
         2 * p.out_height <= p.height && run > 1;
}

// The launch of one row of cells' kernel.
inline Grid grid_of(const Tiling& t, const char* name, void* stream) {
  const int64_t blocks = blocks_of(t);
  Grid grid = {dim3(1),
               dim3(static_cast<unsigned>(t.threads_x), static_cast<unsigned>(t.threads_y)), 0,
               static_cast<cudaStream_t>(stream)};
  if (blocks > INT32_MAX) throw_launch_error(name, grid, "more than 2**31 blocks");
  grid.blocks = dim3(static_cast<unsigned>(blocks));
  return grid;
}

}  // namespace CMF_ISA
}  // namespace cmf

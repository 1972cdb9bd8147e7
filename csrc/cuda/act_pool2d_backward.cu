// dx and dbias of y = pool(act(x + bias)) from the pooled gradient: the dense gradient is written
// once, whatever else backward needs is read once, and the bias's gradient is summed on the way.
#include "common/pool_expand.h"
#include "cuda/act_pool2d.h"
#include "cuda/act_pool2d_shape.h"

namespace cmf {
namespace CMF_ISA {
namespace {

// Bias gradients are summed in double over double, else in float over few elements a thread, and
// in double over all of those.
template <class T>
using SumType = ComputeType<T>;

// As kBlocksOfElements, but for two runs of 8 values and their sums.
template <class T, int N>
constexpr int kBlocksOfRuns = N > 4 ? 4 : kBlocksOfElements<T>;

template <class T>
struct Backward {
  const T* dy;
  const T* saved;  // or null
  const T* bias;   // or null
  const void* index;
  T* dx;                // or null
  SumType<T>* partial;  // or null
};

// What the element at `position` of a window takes of its gradient.
template <class C>
__device__ __forceinline__ C take(const PoolShape<C>& shape, C g, int code, int position) {
  if (shape.maximum) return MaxRule{}.take(g, code, position);
  if (shape.saved != Saved::kMask) return AverageRule{}.take(g, code, position);
  if (shape.activation == Activation::kLeakyRelu) {
    return MaskedRule<C, true>{shape.param}.take(g, code, position);
  }
  return MaskedRule<C, false>{C(0)}.take(g, code, position);
}

// The gradient of a run of windows: dy · act' of a maximum, dy / divisor of an average; and their
// codes.
template <class T, class C, int N>
__device__ __forceinline__ void load_windows(const PoolShape<C>& shape, const Backward<T>& call,
                                             int64_t at, int divisor, C (&g)[N], int (&codes)[N]) {
  load_run(call.dy + at, g);
  for_each_value<N>([&](int v) { codes[v] = 0; });
  if (call.index) load_codes(call.index, shape.index_itemsize, at, codes);
  if (!shape.maximum) {
    const C by = static_cast<C>(divisor);
    for_each_value<N>([&](int v) { g[v] /= by; });
  } else if (shape.saved != Saved::kNothing) {
    C saved[N];
    load_run(call.saved + at, saved);
    differentiate_run(shape.activation, shape.saved, shape.param, saved, g);
  }
}

// g · act'(x + bias) where the derivative is not the window's but the element's.
template <class T, class C, int N>
__device__ __forceinline__ void differentiate_elements(const PoolShape<C>& shape,
                                                       const Backward<T>& call, int64_t at,
                                                       const C (&bias)[N], C (&g)[N]) {
  C z[N];
  load_run(call.saved + at, z);
  for_each_value<N>([&](int v) { z[v] += bias[v]; });
  differentiate_run(shape.activation, Saved::kInput, shape.param, z, g);
}

// -- without pooling: a cell is N elements of a plane, or N channels of a pixel --
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksOfRuns<T, N>)
    act_backward(const PoolShape<ComputeType<T>> shape, const Backward<T> call) {
  typedef ComputeType<T> C;
  const Tiling& t = shape.tiling;
  Walk walk(t, N);
  Cell cell;
  C bias[N], sums[N];
  load_bias(t, call.bias, walk.channel(), bias);
  for_each_value<N>([&](int v) { sums[v] = C(0); });
  while (walk.next(&cell)) {
    const int64_t at = t.channels_last
                           ? (cell.image * t.cells + cell.place) * t.interleaved + cell.lane
                           : (cell.image * t.cells + cell.place) * N;
    C g[N];
    load_run(call.dy + at, g);
    if (shape.saved != Saved::kNothing) {
      C saved[N];
      load_run(call.saved + at, saved);
      if (shape.saved == Saved::kInput) for_each_value<N>([&](int v) { saved[v] += bias[v]; });
      differentiate_run(shape.activation, shape.saved, shape.param, saved, g);
    }
    if (call.dx) store_run(call.dx + at, g);
    for_each_value<N>([&](int v) { sums[v] += g[v]; });
  }
  if (call.partial) store_partial_sums(t, sums, call.partial);
}

// -- windows side by side: a cell is a window, of N channels; behind the last ones, what no window
// holds --
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksOfWindows<T>)
    act_pool_windows_backward(const PoolShape<ComputeType<T>> shape, const Backward<T> call) {
  typedef ComputeType<T> C;
  const Tiling& t = shape.tiling;
  Walk walk(t, N);
  Cell cell;
  C bias[N], sums[N];
  load_bias(t, call.bias, walk.channel(), bias);
  for_each_value<N>([&](int v) { sums[v] = C(0); });
  while (walk.next(&cell)) {
    const PoolWindowOf<int> rows = pool_window(shape.vertical, cell.row);
    const PoolWindowOf<int> columns = pool_window(shape.horizontal, cell.column);
    C g[N];
    int codes[N];
    for_each_value<N>([&](int v) { g[v] = C(0), codes[v] = -1; });
    if (cell.row < shape.vertical.out && cell.column < shape.horizontal.out) {
      const int divisor = pool_extent(shape.vertical, rows, shape.count_include_pad) *
                          pool_extent(shape.horizontal, columns, shape.count_include_pad);
      load_windows(shape, call, shape.at_output(cell.image, cell.row, cell.column) + cell.lane,
                   divisor, g, codes);
      // every gradient of a maximum arrives at one element
      if (shape.maximum) for_each_value<N>([&](int v) { sums[v] += g[v]; });
    }
    if (shape.maximum && !call.dx) continue;
    for (int r = 0; r < rows.last; ++r) {
      for (int s = 0; s < columns.last; ++s) {
        const int64_t at =
            shape.at_input(cell.image, rows.start + r, columns.start + s) + cell.lane;
        const int position = r * shape.horizontal.size + s;
        C dx[N];
        for_each_value<N>([&](int v) { dx[v] = take(shape, g[v], codes[v], position); });
        if (!shape.maximum) {
          if (shape.saved == Saved::kInput) differentiate_elements(shape, call, at, bias, dx);
          for_each_value<N>([&](int v) { sums[v] += dx[v]; });
        }
        if (call.dx) store_run(call.dx + at, dx);
      }
    }
  }
  if (call.partial) store_partial_sums(t, sums, call.partial);
}

// -- contiguous windows of 2×2: a cell is N / 2 of them side by side --
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksOfRuns<T, N>)
    act_pool_pairs_backward(const PoolShape<ComputeType<T>> shape, const Backward<T> call) {
  typedef ComputeType<T> C;
  const Tiling& t = shape.tiling;
  Walk walk(t, 1);
  Cell cell;
  C one_bias[1], sums[N], bias[N];
  load_bias(t, call.bias, walk.channel(), one_bias);
  for_each_value<N>([&](int v) { bias[v] = one_bias[0], sums[v] = C(0); });
  while (walk.next(&cell)) {
    C g[N / 2];
    int codes[N / 2];
    for_each_value<N / 2>([&](int v) { g[v] = C(0), codes[v] = -1; });
    if (cell.row < shape.vertical.out) {
      load_windows(shape, call, shape.at_output(cell.image, cell.row, 0) + cell.column * (N / 2), 4,
                   g, codes);
      if (shape.maximum) for_each_value<N / 2>([&](int v) { sums[v] += g[v]; });
    }
    if (shape.maximum && !call.dx) continue;
    CMF_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      if (2 * cell.row + r >= shape.vertical.length) break;
      const int64_t at = shape.at_input(cell.image, 2 * cell.row + r, 0) + cell.column * N;
      C dx[N];
      for_each_value<N>([&](int v) { dx[v] = take(shape, g[v / 2], codes[v / 2], 2 * r + v % 2); });
      if (!shape.maximum) {
        if (shape.saved == Saved::kInput) differentiate_elements(shape, call, at, bias, dx);
        for_each_value<N>([&](int v) { sums[v] += dx[v]; });
      }
      if (call.dx) store_run(call.dx + at, dx);
    }
  }
  if (call.partial) store_partial_sums(t, sums, call.partial);
}

// -- any windows: a cell is an element of x, of N channels, and asks the windows that hold it, so
// that nothing is zeroed and nothing collides --
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksOfAny<T>)
    act_pool_backward(const PoolShape<ComputeType<T>> shape, const Backward<T> call) {
  typedef ComputeType<T> C;
  const Tiling& t = shape.tiling;
  Walk walk(t, N);
  Cell cell;
  C bias[N], sums[N];
  load_bias(t, call.bias, walk.channel(), bias);
  for_each_value<N>([&](int v) { sums[v] = C(0); });
  while (walk.next(&cell)) {
    const PoolCoverOf<int> rows = pool_cover(shape.vertical, cell.row);
    const PoolCoverOf<int> columns = pool_cover(shape.horizontal, cell.column);
    C dx[N];
    for_each_value<N>([&](int v) { dx[v] = C(0); });
    for (int p = rows.first; p < rows.last; ++p) {
      const int r = cell.row + shape.vertical.pad - p * shape.vertical.stride;
      const int extent =
          pool_extent(shape.vertical, pool_window(shape.vertical, p), shape.count_include_pad);
      for (int q = columns.first; q < columns.last; ++q) {
        const int s = cell.column + shape.horizontal.pad - q * shape.horizontal.stride;
        const int divisor = extent * pool_extent(shape.horizontal, pool_window(shape.horizontal, q),
                                                 shape.count_include_pad);
        C g[N];
        int codes[N];
        load_windows(shape, call, shape.at_output(cell.image, p, q) + cell.lane, divisor, g, codes);
        const int position = r * shape.horizontal.size + s;
        for_each_value<N>([&](int v) { dx[v] += take(shape, g[v], codes[v], position); });
      }
    }
    const int64_t at = shape.at_input(cell.image, cell.row, cell.column) + cell.lane;
    if (!shape.maximum && shape.saved == Saved::kInput) {
      differentiate_elements(shape, call, at, bias, dx);
    }
    for_each_value<N>([&](int v) { sums[v] += dx[v]; });
    if (call.dx) store_run(call.dx + at, dx);
  }
  if (call.partial) store_partial_sums(t, sums, call.partial);
}

// -- the partial sums, in order: kColumns channels a block --
constexpr int kColumns = 8;
constexpr int kRows = kThreads / kColumns;

struct PartialSums {
  int64_t channels;
  int64_t outer;  // images of a contiguous tensor, or 1
  int64_t parts;
  int64_t channel_stride;
  int64_t part_stride;
  int64_t outer_stride;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_partial_sums(const PartialSums sums, const SumType<T>* partial, T* dbias) {
  CMF_SHARED(double[kRows][kColumns], shared);
  const int column = static_cast<int>(threadIdx.x), row = static_cast<int>(threadIdx.y);
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumns + column;
  double sum = 0;
  if (k < sums.channels) {
    for (int64_t n = 0; n < sums.outer; ++n) {
      const SumType<T>* at = partial + k * sums.channel_stride + n * sums.outer_stride;
      for (int64_t i = row; i < sums.parts; i += kRows) {
        sum += static_cast<double>(at[i * sums.part_stride]);
      }
    }
  }
  shared[row][column] = sum;
  __syncthreads();
  if (row != 0 || k >= sums.channels) return;
  for (int r = 1; r < kRows; ++r) sum += shared[r][column];
  dbias[k] = from_compute<T>(static_cast<ComputeType<T>>(sum));
}

// Which kernel takes a problem, and the cells it goes over.
enum class Family { kElements, kPairs, kWindows, kAny };
struct Choice {
  Family family;
  int vector;  // elements of a thread's run
  Tiling tiling;
};

constexpr int64_t kMostWindow = 16;  // elements that one thread writes

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `flat`, `channels`: elements of a run along a plane, and of channels.
Choice choose(const ActPool2dProblem& p, int flat, int channels, const void* const* addresses,
              int count) {
  const int run = p.pool == Pool::kNone ? flat : channels;
  Choice choice = {Family::kAny, vectors_fit(p, run, addresses, count) ? run : 1, {}};
  int64_t rows = p.height, columns = p.width;
  int vector = choice.vector;
  if (p.pool == Pool::kNone) {
    choice.family = Family::kElements;
    columns = p.height * p.width / (p.channels_last ? 1 : vector);
    rows = 1;
  } else if (is_pairs(p, flat, addresses, count)) {
    choice.family = Family::kPairs;
    rows = ceil_divide(p.height, 2);
    columns = p.width / flat;
    vector = 1;
  } else if (p.pool_stride_height == p.pool_height && p.pool_stride_width == p.pool_width &&
             p.pool_pad_height == 0 && p.pool_pad_width == 0 &&
             p.pool_height * p.pool_width <= kMostWindow) {
    choice.family = Family::kWindows;
    rows = ceil_divide(p.height, p.pool_height);
    columns = ceil_divide(p.width, p.pool_width);
  }
  choice.tiling =
      make_tiling(p.channels_last, p.batch, p.channels, rows * columns, columns, vector);
  return choice;
}

template <class T>
using Kernel = void (*)(const PoolShape<ComputeType<T>>, const Backward<T>);

template <class T>
Kernel<T> kernel_of(Family family, bool vectors) {
  constexpr int kFlat = kFlatRun<T>, kChannels = kChannelRun<T>;
  switch (family) {
    case Family::kElements:
      return vectors ? act_backward<T, kFlat> : act_backward<T, 1>;
    case Family::kWindows:
      return vectors ? act_pool_windows_backward<T, kChannels> : act_pool_windows_backward<T, 1>;
    case Family::kPairs:
      if constexpr (kFlat > 1) return act_pool_pairs_backward<T, kFlat>;
      break;
    case Family::kAny:
      break;
  }
  return vectors ? act_pool_backward<T, kChannels> : act_pool_backward<T, 1>;
}

const char* name_of(Family family) {
  const char* const names[] = {"act_backward", "act_pool_pairs_backward",
                               "act_pool_windows_backward", "act_pool_backward"};
  return names[static_cast<int>(family)];
}

template <class T>
void backward(const ActPool2dProblem& p, const Backward<T>& call, T* dbias, void* stream) {
  typedef ComputeType<T> C;
  const void* const addresses[] = {call.dy, call.saved, call.index, call.dx};
  const Choice choice = choose(p, kFlatRun<T>, kChannelRun<T>, addresses, 4);
  const Tiling& t = choice.tiling;
  const Kernel<T> kernel = kernel_of<T>(choice.family, choice.vector > 1);
  const char* const name = name_of(choice.family);
  launch(name, kernel, grid_of(t, name, stream), make_pool_shape<C>(p, t), call);
  if (!dbias) return;
  PartialSums sums = {p.channels, 1, t.parts, 1, p.channels, 0};
  if (!p.channels_last) sums = {p.channels, p.batch, t.parts, t.parts, 1, p.channels * t.parts};
  const int64_t blocks = ceil_divide(p.channels, kColumns);
  Grid grid = {dim3(1), dim3(kColumns, kRows), 0, static_cast<cudaStream_t>(stream)};
  if (blocks > INT32_MAX) throw_launch_error("add_partial_sums", grid, "more than 2**31 blocks");
  grid.blocks = dim3(static_cast<unsigned>(blocks));
  launch("add_partial_sums", add_partial_sums<T>, grid, sums, call.partial, dbias);
}

}  // namespace

int64_t act_pool2d_backward_scratch(const ActPool2dProblem& p) {
  const void* const none[] = {nullptr};  // aligned as well as can be
  const int flat = p.itemsize == 8 ? 1 : 16 / p.itemsize, channels = p.itemsize == 8 ? 1 : 4;
  const int64_t runs = partial_sums_of(choose(p, flat, channels, none, 1).tiling);
  const int64_t singles = partial_sums_of(choose(p, 1, 1, none, 1).tiling);
  return (runs > singles ? runs : singles) * (p.itemsize == 8 ? 8 : 4);
}

void act_pool2d_backward(const ActPool2dProblem& p, const void* dy, const void* saved,
                         const void* bias, const void* index, void* dx, void* dbias, void* scratch,
                         void* stream) {
  check_act_pool2d(p);
  if (p.batch == 0) return;
  switch (static_cast<DType>(p.dtype)) {
#define CMF_CASE(D, T)                                                                      \
  case DType::D:                                                                            \
    return backward<T>(p,                                                                   \
                       Backward<T>{static_cast<const T*>(dy), static_cast<const T*>(saved), \
                                   static_cast<const T*>(bias), index, static_cast<T*>(dx), \
                                   dbias ? static_cast<SumType<T>*>(scratch) : nullptr},    \
                       static_cast<T*>(dbias), stream);
    CMF_CASE(kFloat32, float)
    CMF_CASE(kFloat64, double)
    CMF_CASE(kFloat16, Half)
    CMF_CASE(kBFloat16, BFloat16)
#undef CMF_CASE
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

// y = pool(act(x + bias)): every element of x is read once, every element of y written once.
#include "common/pool_reduce.h"
#include "cuda/act_pool2d.h"
#include "cuda/act_pool2d_shape.h"

namespace cmf {
namespace CMF_ISA {
namespace {

template <class T>
struct Forward {
  const T* x;
  const T* bias;
  T* y;
  void* index;       // or null
  T* preactivation;  // or null
};

template <class C>
using Maximum = MaxReducer<C, C, int, true>;
template <class C>
using Sum = SumReducer<C, C, int, true>;

// -- without pooling: a cell is N elements of a plane, or N channels of a pixel --
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksOfElements<T>)
    act_forward(const PoolShape<ComputeType<T>> shape, const Forward<T> call) {
  typedef ComputeType<T> C;
  const Tiling& t = shape.tiling;
  Walk walk(t, N);
  Cell cell;
  C bias[N];
  load_bias(t, call.bias, walk.channel(), bias);
  while (walk.next(&cell)) {
    const int64_t at = t.channels_last
                           ? (cell.image * t.cells + cell.place) * t.interleaved + cell.lane
                           : (cell.image * t.cells + cell.place) * N;
    C z[N];
    load_run(call.x + at, z);
    for_each_value<N>([&](int v) { z[v] += bias[v]; });
    activate_run(shape.activation, shape.param, z);
    store_run(call.y + at, z);
  }
}

// What an output has after its window: the value, the code, and what backward wants of both.
template <class T, class C, class Reducer, int N>
__device__ __forceinline__ void finish(const PoolShape<C>& shape, const Forward<T>& call,
                                       Reducer (&windows)[N], int64_t at, int divisor) {
  C value[N];
  for_each_value<N>([&](int v) { value[v] = windows[v].value; });
  if (!shape.maximum) {
    const C by = static_cast<C>(divisor);
    for_each_value<N>([&](int v) { value[v] /= by; });
  }
  if (!shape.activates_first) activate_run(shape.activation, shape.param, value);
  store_run(call.y + at, value);
  if (call.index) {
    int codes[N];
    for_each_value<N>([&](int v) { codes[v] = windows[v].code; });
    store_codes(call.index, shape.index_itemsize, at, codes);
  }
}

// x + bias at the position that a maximum chose, rounded as it is kept.
template <class T, class C>
__device__ __forceinline__ T chosen(const T* window, int64_t row_stride, int64_t column_stride,
                                    int pool_width, int code, C bias) {
  const int r = code / pool_width, s = code - r * pool_width;
  return from_compute<T>(to_compute<C>(window[r * row_stride + s * column_stride]) + bias);
}

// -- any window: a cell is an output, of N channels --
template <class T, template <class> class Reduce, int N>
__global__ void __launch_bounds__(kThreads, kBlocksOfWindows<T>)
    act_pool_forward(const PoolShape<ComputeType<T>> shape, const Forward<T> call) {
  typedef ComputeType<T> C;
  // of a window's row, loaded at once: 16 bytes, or four places
  constexpr int kColumns = N == 1 ? 4 : kRunOf<T> / N;
  const Tiling& t = shape.tiling;
  Walk walk(t, N);
  Cell cell;
  C bias[N];
  load_bias(t, call.bias, walk.channel(), bias);
  const int64_t row_stride = shape.horizontal.length * t.interleaved;
  while (walk.next(&cell)) {
    const PoolWindowOf<int> rows = pool_window(shape.vertical, cell.row);
    const PoolWindowOf<int> columns = pool_window(shape.horizontal, cell.column);
    const T* const window =
        call.x + shape.at_input(cell.image, rows.start, columns.start) + cell.lane;
    // what every value, NaN alone excepted, comes before: the first position is taken
    const C before = shape.maximum ? static_cast<C>(-__builtin_inf()) : C(-0.0);
    const int first = rows.first * shape.horizontal.size + columns.first;
    Reduce<C> windows[N];
    for_each_value<N>([&](int v) {
      windows[v] = Reduce<C>(shape.rule);
      windows[v].begin(before, first);
    });
    for (int r = rows.first; r < rows.last; ++r) {
      for (int s = columns.first; s < columns.last; s += kColumns) {
        C z[kColumns * N];
        CMF_UNROLL(kColumns)
        for (int c = 0; c < kColumns; ++c) {
          C run[N];
          for_each_value<N>([&](int v) { run[v] = before; });
          if (s + c < columns.last) {
            load_run(window + r * row_stride + (s + c) * t.interleaved, run);
            for_each_value<N>([&](int v) { run[v] += bias[v]; });
          }
          for_each_value<N>([&](int v) { z[c * N + v] = run[v]; });
        }
        if (shape.activates_first) activate_run(shape.activation, shape.param, z);
        CMF_UNROLL(kColumns)
        for (int c = 0; c < kColumns; ++c) {
          const int position = r * shape.horizontal.size + s + c;
          if (s + c < columns.last) {
            for_each_value<N>([&](int v) { windows[v].add(z[c * N + v], position); });
          }
        }
      }
    }
    const int divisor = pool_extent(shape.vertical, rows, shape.count_include_pad) *
                        pool_extent(shape.horizontal, columns, shape.count_include_pad);
    const int64_t at = shape.at_output(cell.image, cell.row, cell.column) + cell.lane;
    finish(shape, call, windows, at, divisor);
    if (call.preactivation) {
      T z[N];
      for_each_value<N>([&](int v) {
        z[v] = chosen(window + v, row_stride, t.interleaved, shape.horizontal.size, windows[v].code,
                      bias[v]);
      });
      Run<T, N>::store(call.preactivation + at, z);
    }
  }
}

// -- contiguous windows of 2×2: a cell is N / 2 of them side by side --
template <class T, template <class> class Reduce, int N>
__global__ void __launch_bounds__(kThreads, kBlocksOfElements<T>)
    act_pool_pairs_forward(const PoolShape<ComputeType<T>> shape, const Forward<T> call) {
  typedef ComputeType<T> C;
  const Tiling& t = shape.tiling;
  Walk walk(t, 1);
  Cell cell;
  C bias[1];
  load_bias(t, call.bias, walk.channel(), bias);
  while (walk.next(&cell)) {
    const T* const window = call.x + shape.at_input(cell.image, 2 * cell.row, 0) + cell.column * N;
    C z[2][N];
    load_run(window, z[0]);
    load_run(window + shape.horizontal.length, z[1]);
    Reduce<C> windows[N / 2];
    for_each_value<N / 2>([&](int v) { windows[v] = Reduce<C>(shape.rule); });
    CMF_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      for_each_value<N>([&](int v) { z[r][v] += bias[0]; });
      if (shape.activates_first) activate_run(shape.activation, shape.param, z[r]);
      for_each_value<N / 2>([&](int v) {
        if (r == 0) {
          windows[v].begin(z[0][2 * v], 0);
        } else {
          windows[v].add(z[1][2 * v], 2);
        }
        windows[v].add(z[r][2 * v + 1], 2 * r + 1);
      });
    }
    const int64_t at = shape.at_output(cell.image, cell.row, 0) + cell.column * (N / 2);
    finish(shape, call, windows, at, 4);
    if (call.preactivation) {
      T kept[N / 2];
      for_each_value<N / 2>([&](int v) {
        kept[v] = chosen(window + 2 * v, static_cast<int64_t>(shape.horizontal.length), 1, 2,
                         windows[v].code, bias[0]);
      });
      Run<T, N / 2>::store(call.preactivation + at, kept);
    }
  }
}

template <class T>
using Kernel = void (*)(const PoolShape<ComputeType<T>>, const Forward<T>);

template <class T>
void forward(const ActPool2dProblem& p, const Forward<T>& call, void* stream) {
  typedef ComputeType<T> C;
  constexpr int kFlat = kFlatRun<T>;
  constexpr int kChannels = kChannelRun<T>;
  const void* const addresses[] = {call.x, call.y, call.preactivation, call.index};
  const bool maximum = p.pool == Pool::kMax;
  const auto run = [&](const char* name, Kernel<T> kernel, int64_t cells, int64_t width,
                       int vector) {
    const Tiling t = make_tiling(p.channels_last, p.batch, p.channels, cells, width, vector);
    launch(name, kernel, grid_of(t, name, stream), make_pool_shape<C>(p, t), call);
  };
  if constexpr (kFlat > 1) {
    if (is_pairs(p, kFlat, addresses, 4)) {
      const int64_t width = p.width / kFlat;
      return run("act_pool_pairs_forward",
                 maximum ? act_pool_pairs_forward<T, Maximum, kFlat>
                         : act_pool_pairs_forward<T, Sum, kFlat>,
                 p.out_height * width, width, 1);
    }
  }
  if (p.pool == Pool::kNone) {
    const bool vectors = vectors_fit(p, kFlat, addresses, 4);
    const int vector = vectors ? kFlat : 1;
    const int64_t cells = p.height * p.width / (p.channels_last ? 1 : vector);
    return run("act_forward", vectors ? act_forward<T, kFlat> : act_forward<T, 1>, cells, cells,
               vector);
  }
  const bool vectors = vectors_fit(p, kChannels, addresses, 4);
  Kernel<T> kernel = maximum ? act_pool_forward<T, Maximum, 1> : act_pool_forward<T, Sum, 1>;
  if (vectors) {
    kernel =
        maximum ? act_pool_forward<T, Maximum, kChannels> : act_pool_forward<T, Sum, kChannels>;
  }
  run("act_pool_forward", kernel, p.out_height * p.out_width, p.out_width, vectors ? kChannels : 1);
}

}  // namespace

void act_pool2d_forward(const ActPool2dProblem& p, const void* x, const void* bias, void* y,
                        void* index, void* preactivation, void* stream) {
  check_act_pool2d(p);
  if (p.batch == 0) return;
  switch (static_cast<DType>(p.dtype)) {
#define CMF_CASE(D, T)                                                                       \
  case DType::D:                                                                             \
    return forward<T>(p,                                                                     \
                      Forward<T>{static_cast<const T*>(x), static_cast<const T*>(bias),      \
                                 static_cast<T*>(y), index, static_cast<T*>(preactivation)}, \
                      stream);
    CMF_CASE(kFloat32, float)
    CMF_CASE(kFloat64, double)
    CMF_CASE(kFloat16, Half)
    CMF_CASE(kBFloat16, BFloat16)
#undef CMF_CASE
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

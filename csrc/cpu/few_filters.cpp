#include "cpu/few_filters.h"

#include "cpu/act_pool2d.h"
#include "cpu/act_row.h"
#include "cpu/band_epilogue.h"
#include "cpu/integers.h"
#include "cpu/parts.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;
constexpr int64_t kValuesPerThread = INT64_C(1) << 15;  // of x
// Pixels of a chunk: their sums lie in the first cache beside runs of four planes.
constexpr int64_t kMostPixels = 1024;
constexpr int kPlanes = 4;  // of x that are added at once
constexpr int64_t kLeastChannels = 8;

const RowBias<float> kNoBias = {-0.0f, nullptr};

// Channels c .. c + C - 1 of `count` pixels, x planes `plane` apart, are added to y [k], planes
// `plane` apart; behind the bias where `first` says that nothing is there yet.
template <int K, int C>
void add_planes(const float* x, int64_t plane, const float* w, int64_t channels, const float* bias,
                bool first, int64_t count, float* y) {
  V weights[K][C];
  for (int k = 0; k < K; ++k) {
    for (int c = 0; c < C; ++c) weights[k][c] = broadcast(w[k * channels + c]);
  }
  const auto add = [&](int64_t i, int lanes) __attribute__((always_inline)) {
    V values[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) values[c] = load_lanes<float>(x + c * plane + i, lanes);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      float* target = y + k * plane + i;
      V sum = first ? broadcast(bias ? bias[k] : 0.0f) : load_lanes<float>(target, lanes);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) sum += values[c] * weights[k][c];
      store_lanes<float>(target, sum, lanes);
    }
  };
  int64_t i = 0;
  for (; i + kV <= count; i += kV) add(i, kV);
  if (i < count) add(i, static_cast<int>(count - i));
}

template <int K>
void sum_planes(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  const ActPool2dProblem& pool = p.pool;
  const int64_t area = pool.height * pool.width;
  // whole vectors: the same ones whatever the number of threads
  const int64_t vectors = divide_up(area, kV);
  const int64_t share = most(pool.batch * vectors / (2 * threads), 1);
  const int64_t chunks = divide_up(vectors, least(kMostPixels / kV, share));
  const EvenParts parts(vectors, chunks);
  const float* w = static_cast<const float*>(t.w);
  const float* bias = static_cast<const float*>(t.bias);
  in_parallel(pool.batch * chunks, threads, [&](Range units) {
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t n = unit / chunks;
      const int64_t first = parts.first(unit % chunks) * kV;
      const int64_t count = least(parts.first(unit % chunks + 1) * kV, area) - first;
      const float* x = static_cast<const float*>(t.x) + n * p.image_channels * area + first;
      float* y = static_cast<float*>(t.y) + n * pool.image_channels * area + first;
      int64_t c = 0;
      for (; c + kPlanes <= p.in_channels; c += kPlanes) {
        add_planes<K, kPlanes>(x + c * area, area, w + c, p.in_channels, bias, c == 0, count, y);
      }
      for (; c < p.in_channels; ++c) {
        add_planes<K, 1>(x + c * area, area, w + c, p.in_channels, bias, c == 0, count, y);
      }
      for (int k = 0; k < K; ++k) {
        activate_row<float, float>(pool, y + k * area, kNoBias, y + k * area, count);
      }
    }
    return true;
  });
}

// The sums of some pixels of an NHWC x, `pixel` apart, -> y [pixel][K], side by side.
template <int K>
void sum_pixels_of(const float* x, int64_t pixel, int64_t channels, const float* w, V bias,
                   int64_t count, float* y) {
  constexpr int kPixels = kV / K;
  for (int64_t i = 0; i < count; i += kPixels) {
    const int some = static_cast<int>(least(count - i, kPixels));
    const float* sources[kPixels];
    for (int j = 0; j < kPixels; ++j) sources[j] = x + (i + (j < some ? j : 0)) * pixel;
    V sums[kV] = {};
    const auto add = [&](int64_t c, int lanes) __attribute__((always_inline)) {
      V weights[K];
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) weights[k] = load_lanes<float>(w + k * channels + c, lanes);
#pragma GCC unroll 16
      for (int j = 0; j < kPixels; ++j) {
        const V values = load_lanes<float>(sources[j] + c, lanes);
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) sums[j * K + k] += values * weights[k];
      }
    };
    int64_t c = 0;
    for (; c + kV <= channels; c += kV) add(c, kV);
    if (c < channels) add(c, static_cast<int>(channels - c));
    transpose_block<float>(sums);
#pragma GCC unroll 16
    for (int step = kV / 2; step > 0; step /= 2) {
#pragma GCC unroll 16
      for (int j = 0; j < step; ++j) sums[j] += sums[j + step];
    }
    store_lanes<float>(y + i * K, sums[0] + bias, some * K);
  }
}

template <int K>
void sum_pixels_all(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  const ActPool2dProblem& pool = p.pool;
  const int64_t pixels = pool.batch * pool.height * pool.width;
  const int64_t y_step = y_pixel(pool, t);
  float lanes[kV];
  for (int i = 0; i < kV; ++i) lanes[i] = t.bias ? static_cast<const float*>(t.bias)[i % K] : 0.0f;
  const V bias = load<float>(lanes);
  const float* w = static_cast<const float*>(t.w);
  // kV pixels at a time: they fill vectors, the same ones whatever the number of threads
  in_parallel(divide_up(pixels, kV), threads, [&](Range all) {
    float sums[kMostPixels];
    constexpr int64_t kSome = kMostPixels / (K * kV) * kV;
    const int64_t last = least(all.last * kV, pixels);
    for (int64_t first = all.first * kV; first < last; first += kSome) {
      const int64_t count = least(last - first, kSome);
      float* y = static_cast<float*>(t.y) + first * y_step;
      float* target = y_step == K ? y : sums;
      sum_pixels_of<K>(static_cast<const float*>(t.x) + first * p.image_channels, p.image_channels,
                       p.in_channels, w, bias, count, target);
      activate_row<float, float>(pool, target, kNoBias, target, count * K);
      for (int64_t i = 0; target == sums && i < count; ++i) {
        for (int k = 0; k < K; ++k) y[i * y_step + k] = sums[i * K + k];
      }
    }
    return true;
  });
}

template <int K>
void forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  if (p.x_channels_last) {
    sum_pixels_all<K>(p, t, threads);
  } else {
    sum_planes<K>(p, t, threads);
  }
}

void forward_of_few(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  const int64_t values = p.pool.batch * p.in_channels * p.height * p.width;
  threads = static_cast<int>(most(1, least(threads, values / kValuesPerThread)));
  switch (p.pool.channels) {
    case 1:
      return forward<1>(p, t, threads);
    case 2:
      return forward<2>(p, t, threads);
    case 3:
      return forward<3>(p, t, threads);
    default:
      return forward<4>(p, t, threads);
  }
}

}  // namespace

bool takes_few_filters(const ConvActPool2dProblem& p, const ConvForwardTensors& t) {
  const bool whole =
      p.pool.image_channels == p.pool.channels && y_pixel(p.pool, t) == p.pool.channels;
  return p.pool.channels <= kMostFewFilters && p.in_channels >= kLeastChannels && !t.x_scale &&
         p.stride_height == 1 && p.stride_width == 1 && p.x_channels_last == p.pool.channels_last &&
         (p.pool.pool == Pool::kNone || whole);
}

bool few_filters_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  if (p.pool.pool == Pool::kNone) {
    forward_of_few(p, t, threads);
    return true;
  }
  // what is pooled is small beside x
  Scratch<float> z;
  if (!z.allocate(p.pool.batch * p.pool.channels * p.pool.height * p.pool.width)) return false;
  ConvActPool2dProblem plain = p;
  plain.pool.pool = Pool::kNone;
  plain.pool.activation = static_cast<int32_t>(Activation::kIdentity);
  ConvForwardTensors sums = t;
  sums.bias = nullptr;
  sums.y = z.data;
  forward_of_few(plain, sums, threads);
  return act_pool2d_forward(p.pool, z.data, t.bias, t.y, t.index, t.preactivation, threads);
}

}  // namespace CMF_ISA
}  // namespace cmf

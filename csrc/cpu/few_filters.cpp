#include "cpu/few_filters.h"

#include <type_traits>

#include "cpu/act_pool2d.h"
#include "cpu/act_row.h"
#include "cpu/band_epilogue.h"
#include "cpu/integers.h"
#include "cpu/parts.h"
#include "cpu/pointwise_pack.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/simd_sums.h"

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

template <Change kChange>
CMF_HOST_DEVICE V changed(V value, V scale, V shift) {
  if constexpr (kChange == Change::kNormalised) return normalised(value, scale, shift);
  return kChange == Change::kScaled ? value * scale : value;
}

// What some channels are multiplied with and shifted by, or null.
struct Scale {
  const float* scale;
  const float* shift;
};

// C channels of `count` pixels, x planes `plane` apart, are added to y [k], planes `plane` apart.
template <int K, int C, Change kChange>
void add_planes(const float* x, int64_t plane, const Scale& change, const float* w,
                int64_t channels, int64_t count, float* y) {
  V weights[K][C];
  for (int k = 0; k < K; ++k) {
    for (int c = 0; c < C; ++c) weights[k][c] = broadcast(w[k * channels + c]);
  }
  const auto add = [&](int64_t i, int lanes) __attribute__((always_inline)) {
    V values[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      values[c] = changed<kChange>(load_lanes<float>(x + c * plane + i, lanes),
                                   broadcast(change.scale ? change.scale[c] : 1.0f),
                                   broadcast(change.shift ? change.shift[c] : 0.0f));
    }
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      float* target = y + k * plane + i;
      V sum = load_lanes<float>(target, lanes);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) sum += values[c] * weights[k][c];
      store_lanes<float>(target, sum, lanes);
    }
  };
  int64_t i = 0;
  for (; i + kV <= count; i += kV) add(i, kV);
  if (i < count) add(i, static_cast<int>(count - i));
}

template <int K, Change kChange>
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
  const PointwiseInput input = input_of(t);
  in_parallel(pool.batch * chunks, threads, [&](Range units) {
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t n = unit / chunks;
      const int64_t first = parts.first(unit % chunks) * kV;
      const int64_t count = least(parts.first(unit % chunks + 1) * kV, area) - first;
      const float* x = input.x + n * p.image_channels * area + first;
      float* y = static_cast<float*>(t.y) + n * pool.image_channels * area + first;
      for (int k = 0; k < K; ++k) {
        for (int64_t i = 0; i < count; ++i) y[k * area + i] = bias ? bias[k] : 0.0f;
      }
      const auto add = [&](auto planes, int64_t c) {
        const Scale change = {input.scale_at(p, n, c), input.shift ? input.shift_at(c) : nullptr};
        add_planes<K, decltype(planes)::value, kChange>(x + c * area, area, change, w + c,
                                                        p.in_channels, count, y);
      };
      int64_t c = 0;
      for (; c + kPlanes <= p.in_channels; c += kPlanes) {
        add(std::integral_constant<int, kPlanes>{}, c);
      }
      for (; c < p.in_channels; ++c) add(std::integral_constant<int, 1>{}, c);
      for (int k = 0; k < K; ++k) {
        activate_row<float, float>(pool, y + k * area, kNoBias, y + k * area, count);
      }
    }
    return true;
  });
}

// The sums of some pixels of an NHWC x, `pixel` apart, -> y [pixel][K], side by side.
template <int K, Change kChange>
void sum_pixels_of(const float* x, int64_t pixel, int64_t channels, const Scale& change,
                   const float* w, V bias, int64_t count, float* y) {
  constexpr int kPixels = kV / K;
  for (int64_t i = 0; i < count; i += kPixels) {
    const int some = static_cast<int>(least(count - i, kPixels));
    const float* sources[kPixels];
    for (int j = 0; j < kPixels; ++j) sources[j] = x + (i + (j < some ? j : 0)) * pixel;
    V sums[kV] = {};
    const auto add = [&](int64_t c, int lanes) __attribute__((always_inline)) {
      V scale = {}, shift = {};
      if constexpr (kChange != Change::kNone) scale = load_lanes<float>(change.scale + c, lanes);
      if constexpr (kChange == Change::kNormalised) {
        shift = load_lanes<float>(change.shift + c, lanes);
      }
      V weights[K];
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) weights[k] = load_lanes<float>(w + k * channels + c, lanes);
#pragma GCC unroll 16
      for (int j = 0; j < kPixels; ++j) {
        const V values = changed<kChange>(load_lanes<float>(sources[j] + c, lanes), scale, shift);
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) sums[j * K + k] += values * weights[k];
      }
    };
    int64_t c = 0;
    for (; c + kV <= channels; c += kV) add(c, kV);
    if (c < channels) add(c, static_cast<int>(channels - c));
    store_lanes<float>(y + i * K, sums_of_lanes(sums) + bias, some * K);
  }
}

template <int K, Change kChange>
void sum_pixels_all(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  const ActPool2dProblem& pool = p.pool;
  const int64_t pixels = pool.batch * pool.height * pool.width;
  const int64_t y_step = y_pixel(pool, t);
  float lanes[kV];
  for (int i = 0; i < kV; ++i) lanes[i] = t.bias ? static_cast<const float*>(t.bias)[i % K] : 0.0f;
  const V bias = load<float>(lanes);
  const float* w = static_cast<const float*>(t.w);
  const PointwiseInput input = input_of(t);
  // pixels that one image's gates scale
  const int64_t together = most(kChange == Change::kScaled ? pool.height * pool.width : pixels, 1);
  // kV pixels at a time: they fill vectors, the same ones whatever the number of threads
  const int64_t blocks = divide_up(together, kV);
  in_parallel(pixels / together * blocks, threads, [&](Range all) {
    float sums[kMostPixels];
    constexpr int64_t kSome = kMostPixels / (K * kV);
    for (int64_t block = all.first; block < all.last;) {
      const int64_t n = block / blocks;
      const int64_t some = least(least(all.last, (n + 1) * blocks) - block, kSome);
      const int64_t first = block % blocks * kV;
      const int64_t count = least(first + some * kV, together) - first;
      const int64_t pixel = n * together + first;
      float* y = static_cast<float*>(t.y) + pixel * y_step;
      float* target = y_step == K ? y : sums;
      sum_pixels_of<K, kChange>(input.x + pixel * p.image_channels, p.image_channels, p.in_channels,
                                Scale{input.scale_at(p, n, 0), input.shift}, w, bias, count,
                                target);
      activate_row<float, float>(pool, target, kNoBias, target, count * K);
      for (int64_t i = 0; target == sums && i < count; ++i) {
        for (int k = 0; k < K; ++k) y[i * y_step + k] = sums[i * K + k];
      }
      block += some;
    }
    return true;
  });
}

template <int K, Change kChange>
void forward_as(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  if (p.x_channels_last) {
    sum_pixels_all<K, kChange>(p, t, threads);
  } else {
    sum_planes<K, kChange>(p, t, threads);
  }
}

template <int K>
void forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  if (!t.x_scale) return forward_as<K, Change::kNone>(p, t, threads);
  if (t.x_shift) return forward_as<K, Change::kNormalised>(p, t, threads);
  forward_as<K, Change::kScaled>(p, t, threads);
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
  return p.pool.channels <= kMostFewFilters && p.in_channels >= kLeastChannels &&
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

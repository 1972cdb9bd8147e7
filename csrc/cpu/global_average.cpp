#include "cpu/global_average.h"

#include "common/activation.h"
#include "cpu/act_pool2d.h"
#include "cpu/parts.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;
constexpr int kMostVectors = 8;  // of channels whose sums are in registers
// Long sums round more: of so many pixels and of so many such sums, and then in double.
constexpr int64_t kShort = 8;
constexpr int64_t kLong = 64;

// sums [kVectors · kV] of x [pixels][step]; of the last vector `lanes` lanes.
template <int kVectors>
void sum_pixels(const float* x, int64_t pixels, int64_t step, int lanes, float* sums) {
  V totals[kVectors] = {};
  for (int64_t i = 0; i < pixels;) {
    V part[kVectors] = {};
    for (const int64_t last = least(i + kShort, pixels); i < last; ++i, x += step) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors - 1; ++v) part[v] += load<float>(x + v * kV);
      part[kVectors - 1] += load_lanes<float>(x + (kVectors - 1) * kV, lanes);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) totals[v] += part[v];
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) store<float>(sums + v * kV, totals[v]);
}

typedef void (*SumPixels)(const float*, int64_t, int64_t, int, float*);

template <int kVectors = kMostVectors>
SumPixels sum_pixels_of(int64_t vectors) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors) return sum_pixels_of<kVectors - 1>(vectors);
  }
  return sum_pixels<kVectors>;
}

// Channels first .. last - 1 of an image, from a whole vector on. Some pixels at a time, so that
// they are read in the order of their addresses.
void average(const ActPool2dProblem& p, const float* x, Range channels, double* totals, float* y) {
  const int64_t pixels = p.height * p.width;
  const EvenParts vectors(divide_up(channels.last - channels.first, int64_t(kV)),
                          divide_up(channels.last - channels.first, int64_t(kMostVectors * kV)));
  alignas(64) float sums[kMostVectors * kV];
  for (int64_t c = channels.first; c < channels.last; ++c) totals[c] = 0;
  for (int64_t first = 0; first < pixels; first += kLong) {
    const int64_t count = least(kLong, pixels - first);
    for (int64_t part = 0; part < vectors.count(); ++part) {
      const int64_t c = channels.first + vectors.first(part) * kV;
      const int64_t size = least(vectors.size(part) * kV, channels.last - c);
      const int64_t lanes = size - (vectors.size(part) - 1) * kV;
      sum_pixels_of(vectors.size(part))(x + first * p.channels + c, count, p.channels,
                                        static_cast<int>(lanes), sums);
      for (int64_t i = 0; i < size; ++i) totals[c + i] += static_cast<double>(sums[i]);
    }
  }
  for (int64_t c = channels.first; c < channels.last; ++c) {
    y[c] = static_cast<float>(totals[c] / static_cast<double>(pixels));
  }
}

}  // namespace

bool is_global_average(const ActPool2dProblem& p) {
  return p.channels_last && p.pool == Pool::kAvg && p.out_height == 1 && p.out_width == 1 &&
         p.pool_height == p.height && p.pool_width == p.width && p.pool_pad_height == 0 &&
         p.pool_pad_width == 0 && static_cast<Activation>(p.activation) == Activation::kIdentity &&
         static_cast<DType>(p.dtype) == DType::kFloat32;
}

bool global_average(const ActPool2dProblem& p, const float* x, float* y, int threads) {
  const int64_t vectors = divide_up(p.channels, int64_t(kV));
  const int parts = useful_threads(p, threads);
  const int64_t cuts = p.batch % parts == 0 ? 1 : least(parts, vectors);  // of an image's channels
  return in_parallel(p.batch * cuts, parts, [&](Range units) {
    Scratch<double> totals;
    if (!totals.allocate(p.channels)) return false;
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t n = unit / cuts;
      const Range part = part_of(vectors, static_cast<int>(unit % cuts), static_cast<int>(cuts));
      average(p, x + n * p.height * p.width * p.channels,
              Range{part.first * kV, least(part.last * kV, p.channels)}, totals.data,
              y + n * p.channels);
    }
    return true;
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

// The input gradient of a depthwise convolution at stride 2: rows and columns of dx of one parity
// are reached by the taps of that parity alone. Vectors run over the channels.
#pragma once

#include "cpu/depthwise_pixels.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kPairs = 4;  // of columns, in a tile

struct PhaseKernel {
  const ConvActPool2dProblem& p;  // the convolution
  const float* g;                 // where row 0 would lie
  int64_t g_pixel;                // elements from a pixel to the next
  const float* filter;            // [R, S][filter_step]
  int64_t filter_step;
  int64_t dx_pixel;
  bool past_caches;
};

// Row h of dx, `dx` its first pixel: tiles of kPairs columns each of both parities. Column w = 2 i
// - padding and the next one are pair i. kEdge: as in pixel_tiles.
template <int kSize, bool kEdge>
__attribute__((noinline)) void phase_tiles(const PhaseKernel& k, int64_t h, float* dx, Range pairs,
                                           Range channels) {
  typedef Vec<float> V;
  constexpr int kHalf = (kSize + 1) / 2;
  const ConvActPool2dProblem& p = k.p;
  const int64_t Q = p.pool.width;
  const int64_t from_top = h + p.pad_height;
  for (int64_t pair = pairs.first; pair < pairs.last; pair += kPairs) {
    const int64_t w = 2 * pair - p.pad_width;
    const int64_t q = pair - (kHalf - 1);
    for (int64_t c = channels.first; c < channels.last; c += kLanes<float>) {
      const int64_t left = channels.last - c;
      const int lanes = kEdge && left < kLanes<float> ? static_cast<int>(left) : kLanes<float>;
      V even[kPairs];
      V odd[kPairs];
#pragma GCC unroll 16
      for (int i = 0; i < kPairs; ++i) even[i] = odd[i] = V{};
      for (int64_t r = from_top % 2; r < kSize; r += 2) {
        const int64_t row = (from_top - r) / 2;
        if (row < 0 || row >= p.pool.height) continue;
        const float* g = k.g + (row * Q + q) * k.g_pixel + c;
        const float* filter = k.filter + r * kSize * k.filter_step + c;
        V weights[kSize];
#pragma GCC unroll 16
        for (int s = 0; s < kSize; ++s) weights[s] = load<float>(filter + s * k.filter_step);
#pragma GCC unroll 16
        for (int a = 0; a < kHalf - 1 + kPairs; ++a) {
          if (kEdge && (q + a < 0 || q + a >= Q)) continue;
          V value =
              kEdge ? load_lanes<float>(g + a * k.g_pixel, lanes) : load<float>(g + a * k.g_pixel);
          keep_in_register(value);
#pragma GCC unroll 16
          for (int i = 0; i < kPairs; ++i) {
            const int tap = i - a + kHalf - 1;
            if (tap < 0 || tap >= kHalf) continue;
            even[i] += value * weights[2 * tap];
            if (2 * tap + 1 < kSize) odd[i] += value * weights[2 * tap + 1];
          }
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < 2 * kPairs; ++i) {
        if (kEdge && (w + i < 0 || w + i >= p.width)) continue;
        const V value = i % 2 == 0 ? even[i / 2] : odd[i / 2];
        float* target = dx + (w + i) * k.dx_pixel + c;
        if (lanes < kLanes<float>) {
          store_partial<float>(target, value, lanes);
        } else if (k.past_caches) {
          stream(target, value);
        } else {
          store<float>(target, value);
        }
      }
    }
  }
}

template <int kSize>
void phase_row(const PhaseKernel& k, int64_t h, float* dx, int64_t channels) {
  constexpr int64_t kHalf = (kSize + 1) / 2;
  const ConvActPool2dProblem& p = k.p;
  const int64_t begin = p.pad_width / 2;
  const int64_t end = (p.width + p.pad_width + 1) / 2;
  // tiles from `first` to `last` lie inside dx, and see nothing beside g
  int64_t first = begin;
  while (first < end && (first < kHalf - 1 || 2 * first < p.pad_width)) first += kPairs;
  int64_t room = (p.width + p.pad_width) / 2;
  if (room > p.pool.width) room = p.pool.width;
  int64_t last = first + (room > first ? (room - first) / kPairs * kPairs : 0);
  const int64_t whole = channels / kLanes<float> * kLanes<float>;
  if (last <= first || whole == 0) {
    return phase_tiles<kSize, true>(k, h, dx, Range{begin, end}, Range{0, channels});
  }
  phase_tiles<kSize, true>(k, h, dx, Range{begin, first}, Range{0, channels});
  phase_tiles<kSize, false>(k, h, dx, Range{first, last}, Range{0, whole});
  if (whole < channels) {
    phase_tiles<kSize, true>(k, h, dx, Range{first, last}, Range{whole, channels});
  }
  phase_tiles<kSize, true>(k, h, dx, Range{last, end}, Range{0, channels});
}

// Whether phase_rows can take it.
CMF_HOST_DEVICE bool has_phases(const ConvActPool2dProblem& p) {
  return is_square(p) && p.stride_width == 2;
}

// Rows `rows` of dx; `dx`: the first.
inline void phase_rows(const PhaseKernel& k, Range rows, float* dx, int64_t channels) {
  const int64_t step = k.p.width * k.dx_pixel;
  for (int64_t h = rows.first; h < rows.last; ++h, dx += step) {
    if (k.p.kernel_width == 3) {
      phase_row<3>(k, h, dx, channels);
    } else if (k.p.kernel_width == 5) {
      phase_row<5>(k, h, dx, channels);
    } else {
      phase_row<7>(k, h, dx, channels);
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

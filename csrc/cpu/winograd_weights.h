// U = G w G^T of some filters and channels, in the order in which the products read it.
#pragma once

#include "cpu/filter_layout.h"
#include "cpu/turn_filters.h"
#include "cpu/winograd.h"
#include "cpu/winograd_tile.h"

namespace cmf {
namespace CMF_ISA {

// Floats of all of them, for F(m, r) of one group. 0 where memory could not be had.
int64_t winograd_weight_floats(const ConvActPool2dProblem& problem, int outputs);

// Channel blocks first .. last - 1 of the filters k .. k + kWinogradColumns - 1.
struct WeightPart {
  int64_t k;
  int first;
  int last;
};

// Floats of `taps`, scratch of transform_weights.
inline int64_t weight_tap_floats(const ConvActPool2dProblem& p, const WinogradChannels& channels) {
  const int64_t gathered = channels.merged() ? p.in_channels : kLanes<float>;
  return gathered * p.kernel_height * p.kernel_width * kLanes<float>;
}

// `w`: the first of `filters` filters and `count` channels -> taps [channel][tap], filters side by
// side.
inline void turn_channels(const FilterLayout& layout, const float* w, const float* scale,
                          int64_t filters, int64_t count, float* taps) {
  constexpr int kV = kLanes<float>;
  if (!layout.channels_last) {
    turn_filters(w, layout.filter, filters, count * layout.area, taps, kV, scale);
    return;
  }
  for (int64_t tap = 0; tap < layout.area; ++tap) {
    turn_filters(w + tap * layout.tap, layout.filter, filters, count, taps + tap * kV,
                 layout.area * kV, scale);
  }
}

// -> u [channel block][lane][columns] of each frequency, `step` apart. Filter k times scale[k],
// where that is not null.
template <class W>
void transform_weights(const ConvActPool2dProblem& p, const WinogradChannels& channels,
                       const FilterLayout& layout, const float* w, const float* scale,
                       const WeightPart& part, float* taps, float* u, int64_t step) {
  typedef Vec<float> V;
  constexpr int kV = kLanes<float>;
  const int vectors = filter_vectors(p, part.k);
  const int64_t columns = vectors * kV;
  for (int v = 0; v < vectors; ++v) {
    const int64_t k = part.k + v * kV;
    const int64_t filters = least(p.pool.channels - k, kV);
    int64_t turned = -1;  // the first channel of what `taps` holds
    for (int b = part.first; b < part.last; ++b) {
      const ChannelBlock& block = channels[b];
      // a merged pixel has all channels of several columns: they are turned together
      const int64_t first = channels.merged() ? 0 : block.first;
      if (first != turned) {
        const int64_t count = channels.merged() ? p.in_channels : block.lanes;
        turn_channels(layout, w + layout.at(k, first), scale ? scale + k : nullptr, filters, count,
                      taps);
        turned = first;
      }
      for (int lane = 0; lane < block.lanes; ++lane) {
        const int64_t c = channels.merged() ? (block.first + lane) % p.in_channels : lane;
        const int64_t column = channels.merged() ? (block.first + lane) / p.in_channels : 0;
        V taps_of_phase[W::kTaps][W::kTaps];
        for (int r = 0; r < W::kTaps; ++r) {
          for (int s = 0; s < W::kTaps; ++s) {
            const int64_t tap_height = r * p.stride_height + block.tap_height;
            const int64_t tap_width = s * p.stride_width + block.tap_width + column;
            const bool inside = tap_height < p.kernel_height && tap_width < p.kernel_width;
            const int64_t tap = c * layout.area + tap_height * p.kernel_width + tap_width;
            taps_of_phase[r][s] = inside ? load<float>(taps + tap * kV) : V{};
          }
        }
        const int64_t row = int64_t(b - part.first) * kV + lane;
        transform_weight_tile<W>(taps_of_phase, u + row * columns + v * kV, step);
      }
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

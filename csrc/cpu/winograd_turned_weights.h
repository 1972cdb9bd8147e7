// U = G w G^T for the input gradient: the filters' channels are columns.
//
// U [group][frequency][k block][lane][column]
#pragma once

#include "cpu/filter_layout.h"
#include "cpu/parts.h"
#include "cpu/scratch.h"
#include "cpu/turn_filters.h"
#include "cpu/winograd_gradient.h"
#include "cpu/winograd_tile.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kGroupColumns = kGemmVectors * kLanes<float>;
// between frequencies: at distances of a power of two they would share a few sets of the cache
constexpr int64_t kTurnedPadding = 3 * kLanes<float>;

template <class W>
int64_t turned_group_floats(const GradientPlan& plan) {
  return W::kFrequencies * (plan.k_blocks() * kLanes<float> * kGroupColumns + kTurnedPadding);
}

// U of one group. `taps`: scratch memory, [R][S][kLanes].
template <class W>
void turn_group_weights(const ConvActPool2dProblem& p, const GradientPlan& plan, int64_t group,
                        const FilterLayout& layout, const float* weights, float* taps, float* u) {
  constexpr int kV = kLanes<float>;
  const PhaseGroup& g = plan.group(group);
  const int64_t columns = g.vectors * kV;
  const int64_t step = plan.k_blocks() * kV * columns + kTurnedPadding;
  for (int64_t k = 0; k < plan.filters(); ++k) {
    for (int v = 0; v < g.vectors; ++v) {
      const PhaseVector& vector = plan.vector(g.vector + v);
      const float* w = weights + layout.at(k, vector.first);
      // filters lie far apart
      const float* next = w + 3 * layout.filter;
      if (layout.channels_last) {
        for (int64_t tap = 0; tap < layout.area; ++tap) {
          __builtin_prefetch(next + tap * layout.tap);
          store<float>(taps + tap * kV, load_lanes<float>(w + tap * layout.tap, vector.lanes));
        }
      } else {
        for (int64_t i = 0; i < vector.lanes * layout.area; i += kV) __builtin_prefetch(next + i);
        turn_filters(w, layout.area, vector.lanes, layout.area, taps, kV);
      }
      Vec<float> filter[W::kTaps][W::kTaps];
      for (int r = 0; r < W::kTaps; ++r) {
        const int64_t row = r * p.stride_height + vector.tap_height;
        for (int s = 0; s < W::kTaps; ++s) {
          const int64_t column = s * p.stride_width + vector.tap_width;
          const bool inside = row < p.kernel_height && column < p.kernel_width;
          filter[r][s] =
              inside ? load<float>(taps + (row * p.kernel_width + column) * kV) : Vec<float>{};
        }
      }
      transform_weight_tile<W>(filter, u + k * columns + v * kV, step);
    }
  }
}

// U of all groups. False where memory could not be had.
template <class W>
bool turn_weights(const ConvActPool2dProblem& p, const GradientPlan& plan,
                  const FilterLayout& layout, const float* weights, float* u, int threads) {
  return in_parallel(plan.groups(), static_cast<int>(least(plan.groups(), threads)),
                     [&](Range groups) {
                       Scratch<float> taps;
                       if (!taps.allocate(layout.area * kLanes<float>)) return false;
                       for (int64_t group = groups.first; group < groups.last; ++group) {
                         turn_group_weights<W>(p, plan, group, layout, weights, taps.data,
                                               u + group * turned_group_floats<W>(plan));
                       }
                       return true;
                     });
}

}  // namespace CMF_ISA
}  // namespace cmf

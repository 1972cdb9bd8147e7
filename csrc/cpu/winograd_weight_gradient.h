// dw: products of the transformed tiles of x and dz, summed over tiles, and their way back from
// the transform domain.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/filter_layout.h"
#include "cpu/integers.h"
#include "cpu/simd_transpose.h"
#include "cpu/winograd_gradient.h"
#include "cpu/winograd_gradient_tile.h"

namespace cmf {
namespace CMF_ISA {

// A block of sums: [kLanes input channels][kSumColumns output channels].
constexpr int kSumColumns = kGradientVectors * kLanes<float>;
constexpr int64_t kSumBlock = int64_t(kLanes<float>) * kSumColumns;

// Chunks of tiles that are summed from zero before they are added: long sums round more.
constexpr int kSummedChunks = kTileBlock < 32 ? 4 : 2;
// Vectors whose sums lie in the first-level cache beside the tiles.
constexpr int64_t kSummedVectors = 8;

// Transformed tiles: V of dz [chunk][frequency][k block][tile][lane], X of x
// [chunk][frequency][vector][tile][lane].
struct TransformedTiles {
  const float* v;
  const float* x;
};

// Which products follow those of a call, for prefetching.
enum class NextProducts { kColumns, kFrequency };

// Input vectors first .. last - 1 by output channels from block `k` on, at frequency f, all tiles:
// blocks of sums, one behind the other.
template <class W>
void multiply_weight_blocks(const GradientPlan& plan, const TransformedTiles& tiles,
                            const TileChunks& chunks, int f, int64_t first, int64_t last, int64_t k,
                            NextProducts next, bool add, float* sums) {
  const int vectors = plan.k_blocks() - k > 1 ? 2 : 1;
  const bool by_frequency = next == NextProducts::kFrequency;
  const TilePanel b = {tiles.v,
                       PanelLayout{W::kFrequencies, plan.k_blocks()},
                       f,
                       k,
                       by_frequency,
                       by_frequency ? 0 : kGradientVectors};
  const int parts = (chunks.count + kSummedChunks - 1) / kSummedChunks;
  for (int part = 0; part < parts; ++part) {
    const int chunk = chunks.count * part / parts;
    const TileChunks together = {chunk, chunks.count * (part + 1) / parts - chunk,
                                 chunks.first + chunk};
    for (int64_t vector = first; vector < last; ++vector) {
      const PhaseVector& channels = plan.vector(vector);
      if (channels.skips(f, W::kAlpha)) continue;
      const bool more = vector + 1 < last;
      for (int row = 0; row < channels.lanes; row += kGradientRows) {
        const int left = channels.lanes - row;
        const int rows = left < kGradientRows ? left : kGradientRows;
        const TilePanel a = {tiles.x + row,
                             PanelLayout{W::kFrequencies, plan.vectors()},
                             f,
                             vector,
                             !more && by_frequency,
                             more ? 1 : first - vector};
        gradient_tile_for(rows, vectors, add || chunk > 0)(
            a, b, together, sums + (vector - first) * kSumBlock + row * kSumColumns);
      }
    }
  }
}

// The taps of one phase, `scratch` [ceil(channels · rows · columns / kLanes)][filter][kLanes], to
// their places among those of all phases: a filter at a time, whose lines lie side by side.
template <int kTaps>
void scatter_phase(const ConvActPool2dProblem& p, const PhaseVector& channels, int64_t rows,
                   int64_t columns, int filters, const float* scratch, float* target) {
  constexpr int kV = kLanes<float>;
  const int64_t area = p.kernel_height * p.kernel_width;
  const int64_t step = p.stride_height * p.kernel_width;
  const int64_t blocks = divide_up(channels.lanes * rows * columns, kV);
  float taps[kTaps * kTaps * kV];  // of one filter
  target += channels.tap_height * p.kernel_width + channels.tap_width;
  for (int j = 0; j < filters; ++j, target += p.in_channels * area) {
    for (int64_t b = 0; b < blocks; ++b) {
      store<float>(taps + b * kV, load<float>(scratch + (b * kV + j) * kV));
    }
    const float* next = target + p.in_channels * area;
    for (int c = 0; c < channels.lanes; ++c) {
      if (j + 1 < filters) __builtin_prefetch(next + c * area, 1);
      float* place = target + c * area;
      if (rows == kTaps && columns == kTaps) {
        CMF_UNROLL
        for (int i = 0; i < kTaps * kTaps; ++i) {
          place[i / kTaps * step + i % kTaps * p.stride_width] = taps[c * kTaps * kTaps + i];
        }
        continue;
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t s = 0; s < columns; ++s) {
          place[r * step + s * p.stride_width] = taps[(c * rows + r) * columns + s];
        }
      }
    }
  }
}

// The taps of one phase, `scratch` [channel][tap][filter], to their places in [K, R, S, C].
inline void store_channels(const ConvActPool2dProblem& p, const FilterLayout& layout,
                           const PhaseVector& channels, int64_t rows, int64_t columns, int filters,
                           const float* scratch, float* target) {
  constexpr int kV = kLanes<float>;
  const int64_t taps = rows * columns;
  for (int64_t i = 0; i < taps; ++i) {
    Vec<float> values[kV];
    for (int c = 0; c < kV; ++c) {
      values[c] = c < channels.lanes ? load<float>(scratch + (c * taps + i) * kV) : Vec<float>{};
    }
    transpose_block<float>(values);
    const int64_t r = i / columns * p.stride_height + channels.tap_height;
    const int64_t s = i % columns * p.stride_width + channels.tap_width;
    float* place = target + (r * p.kernel_width + s) * layout.tap;
    for (int j = 0; j < filters; ++j) {
      store_lanes<float>(place + j * layout.filter, values[j], channels.lanes);
    }
  }
}

// G^T U G of one block -> dw, as `layout` has it. `sums`: of frequency 0, `step` apart. `scratch`
// [kLanes channels][taps][kLanes]. False where anything is not finite.
template <class W>
bool finish_weight_block(const ConvActPool2dProblem& p, const GradientPlan& plan,
                         const FilterLayout& layout, int64_t vector, int64_t k, const float* sums,
                         int64_t step, float* scratch, float* dw) {
  typedef Vec<float> V;
  constexpr int kV = kLanes<float>;
  const PhaseVector& channels = plan.vector(vector);
  // the taps of this phase and part
  const int64_t rows =
      least(divide_up(p.kernel_height - channels.tap_height, p.stride_height), W::kTaps);
  const int64_t columns =
      least(divide_up(p.kernel_width - channels.tap_width, p.stride_width), W::kTaps);
  const int64_t taps_of_phase = rows > 0 && columns > 0 ? rows * columns : 0;
  const bool dense = taps_of_phase == layout.area;  // all there are
  bool finite = true;
  for (int64_t block = k; block < k + kGradientVectors && block < plan.k_blocks(); ++block) {
    const int64_t filter = block * kV;
    const int filters =
        plan.filters() - filter < kV ? static_cast<int>(plan.filters() - filter) : kV;
    float* target = dw + layout.at(filter, channels.first);
    V bad = V{};
    for (int c = 0; c < channels.lanes; ++c) {
      V taps[W::kTaps][W::kTaps];
      gather_weight_tile<W>(sums + c * kSumColumns + (block - k) * kV, step, channels.short_height,
                            channels.short_width, taps);
      for (int r = 0; r < W::kTaps; ++r) {
        for (int s = 0; s < W::kTaps; ++s) {
          if (r >= rows || s >= columns) continue;
          bad += taps[r][s] - taps[r][s];
          store<float>(scratch + (c * taps_of_phase + r * columns + s) * kV, taps[r][s]);
        }
      }
    }
    if (any_nan(bad)) finite = false;
    if (layout.channels_last) {
      if (taps_of_phase) {
        store_channels(p, layout, channels, rows, columns, filters, scratch, target);
      }
      continue;
    }
    const int64_t count = channels.lanes * taps_of_phase;
    for (int64_t i = 0; i < count; i += kV) {
      const int lanes = count - i < kV ? static_cast<int>(count - i) : kV;
      V values[kV];
      for (int j = 0; j < kV; ++j) {
        values[j] = j < lanes ? load<float>(scratch + (i + j) * kV) : V{};
      }
      transpose_block<float>(values);
      for (int j = 0; j < filters; ++j) {
        if (dense) {
          store_lanes<float>(target + j * layout.filter + i, values[j], lanes);
        } else {
          store<float>(scratch + (i + j) * kV, values[j]);
        }
      }
    }
    if (!dense) scatter_phase<W::kTaps>(p, channels, rows, columns, filters, scratch, target);
  }
  return finite;
}

}  // namespace CMF_ISA
}  // namespace cmf

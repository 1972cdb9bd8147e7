#include "cpu/patches.h"
#include "cpu/patches_layout.h"
#include "cpu/pointwise_pack.h"
#include "cpu/simd_shuffle.h"
#include "cpu/turn_filters.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

// Filters k .. k + kV - 1 of 4 taps each (2x2: nearly every network's), `step` between the taps.
void pack_four_taps(const float* w, float* target, int64_t step) {
  Vec<float> even[2], odd[2], taps[4];
  for (int i = 0; i < 2; ++i) {
    const float* half = w + 2 * i * kV;
    deinterleave<float>(load<float>(half), load<float>(half + kV), &even[i], &odd[i]);
  }
  deinterleave<float>(even[0], even[1], &taps[0], &taps[2]);
  deinterleave<float>(odd[0], odd[1], &taps[1], &taps[3]);
  for (int i = 0; i < 4; ++i) store<float>(target + i * step, taps[i]);
}

void pack_columns_of(const PatchLayout& layout, const float* w, Range inner, float* packed) {
  for (int64_t d = inner.first; d < inner.last; ++d) {
    for (int64_t k = 0; k < layout.panels * kTileLanes; k += kV) {
      const int64_t lanes = most(least(layout.filters - k, kV), 0);
      const float* source = w + (d * layout.filters + k) * layout.taps;
      float* target = packed + (k / kTileLanes * layout.inner + d) * kTileLanes + k % kTileLanes;
      if (layout.taps == 1) {
        store<float>(target, load_lanes<float>(source, static_cast<int>(lanes)));
      } else if (layout.taps == 4 && lanes == kV) {
        pack_four_taps(source, target, layout.tap_floats());
      } else {
        turn_filters(source, layout.taps, lanes, layout.taps, target, layout.tap_floats());
      }
    }
  }
}

void pack_row_tile(const PatchLayout& layout, const float* w, Range tile, float* packed) {
  const int64_t rows = tile.last - tile.first;
  const int64_t count = rows * layout.taps;  // values of one d, side by side
  for (int64_t d = 0; d < layout.inner; d += kV) {
    float* target = packed + tile.first * round_up(layout.inner, kV) + d * rows;
    for (int64_t i = 0; i < count; i += kV) {
      const int lanes = static_cast<int>(least(count - i, kV));
      Vec<float> block[kV];
      for (int j = 0; j < kV; ++j) {
        const float* source = w + ((d + j) * layout.filters + tile.first) * layout.taps + i;
        block[j] = d + j < layout.inner ? load_lanes<float>(source, lanes) : Vec<float>{};
      }
      transpose_block<float>(block);
      for (int j = 0; j < lanes; ++j) {
        const int64_t row = (i + j) / layout.taps, tap = (i + j) % layout.taps;
        store<float>(target + tap * layout.tap_floats() + row * kV, block[j]);
      }
    }
  }
}

}  // namespace

void pack_patch_weights(const PatchLayout& layout, const float* w, float* packed, int threads) {
  if (layout.taps * layout.tap_floats() < kLeastWeights) threads = 1;
  if (layout.pixels_are_rows) {
    in_parallel(layout.inner, threads, [&](Range inner) {
      pack_columns_of(layout, w, inner, packed);
      return true;
    });
    return;
  }
  const TileRows rows = {layout.filters};
  in_parallel(rows.tiles(), threads, [&](Range tiles) {
    for (int64_t i = tiles.first; i < tiles.last; ++i) {
      pack_row_tile(layout, w, rows.tile(static_cast<int>(i)), packed);
    }
    return true;
  });
}

int64_t patches_transposed_size(const ConvActPool2dProblem& p) {
  const PatchLayout layout(p);
  return layout.taps * layout.tap_floats();
}

bool patches_prepare_transposed(const ConvActPool2dProblem& p, const void* w, void* prepared,
                                int threads) {
  pack_patch_weights(PatchLayout(p), static_cast<const float*>(w), static_cast<float*>(prepared),
                     threads);
  return true;
}

}  // namespace CMF_ISA
}  // namespace cmf

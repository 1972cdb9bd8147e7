#include "cpu/patches.h"
#include "cpu/patches_layout.h"
#include "cpu/pointwise_pack.h"
#include "cpu/turn_filters.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kLeastWeights = 65536;  // that are worth a second thread

void pack_columns_of(const PatchLayout& layout, const float* w, Range inner, float* packed) {
  for (int64_t d = inner.first; d < inner.last; ++d) {
    for (int64_t k = 0; k < layout.panels * kTileLanes; k += kV) {
      const int64_t lanes = most(least(layout.filters - k, kV), 0);
      turn_filters(w + (d * layout.filters + k) * layout.taps, layout.taps, lanes, layout.taps,
                   packed + (k / kTileLanes * layout.inner + d) * kTileLanes + k % kTileLanes,
                   layout.tap_floats());
    }
  }
}

void pack_row_tile(const PatchLayout& layout, const float* w, Range tile, float* packed) {
  const int64_t rows = tile.last - tile.first;
  const int64_t padded = round_up(layout.inner, kV);
  for (int64_t d = 0; d < padded; ++d) {
    const float* source = w + (d * layout.filters + tile.first) * layout.taps;
    float* target = packed + tile.first * padded + d / kV * rows * kV + d % kV;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t tap = 0; tap < layout.taps; ++tap) {
        target[tap * layout.tap_floats() + row * kV] =
            d < layout.inner ? source[row * layout.taps + tap] : 0.0f;
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

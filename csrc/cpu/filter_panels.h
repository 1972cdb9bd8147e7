// The filters of a convolution as columns, a panel of kTileLanes of them at a time.
#pragma once

#include "cpu/parts.h"
#include "cpu/pointwise_tile.h"
#include "cpu/scratch.h"
#include "cpu/turn_filters.h"

namespace cmf {
namespace CMF_ISA {

constexpr int64_t kLeastWeights = 65536;  // whose packing is worth a second thread

// The filters where the caller has them: [K][slow][fast], whose columns are [fast][slow] deep.
struct RawFilters {
  const float* w;
  const float* scale;  // [K] or null: the filters are w · scale
  int64_t count;       // K
  int64_t slow;
  int64_t fast;

  int64_t depth() const { return slow * fast; }

  // Panel `panel` -> [depth][kTileLanes], filters that don't exist as 0.
  void pack(int64_t panel, float* columns) const {
    for (int64_t k = 0; k < kTileLanes; k += kLanes<float>) {
      const int64_t first = panel * kTileLanes + k;
      const int64_t filters = most(count - first, 0);
      turn_filters_by_tap(w + first * depth(), depth(), filters, slow, fast, columns + k,
                          kTileLanes, scale && filters ? scale + first : nullptr);
    }
  }
};

// All panels, each packed [depth][kTileLanes].
inline void pack_filters(const RawFilters& filters, float* packed, int threads) {
  const int64_t panels = divide_up(filters.count, int64_t(kTileLanes));
  if (filters.count * filters.depth() < kLeastWeights) threads = 1;
  in_parallel(panels, threads, [&](Range range) {
    for (int64_t panel = range.first; panel < range.last; ++panel) {
      filters.pack(panel, packed + panel * kTileLanes * filters.depth());
    }
    return true;
  });
}

// Those of one thread: packed before, or here, each as it is needed.
class FilterPanels {
 public:
  // `prepared`: all of them, packed, [K / kTileLanes][depth][kTileLanes]; or null, and `raw`.
  FilterPanels(const void* prepared, const RawFilters& raw, int64_t depth)
      : prepared_(static_cast<const float*>(prepared)), raw_(raw), floats_(depth * kTileLanes) {}

  // False where memory could not be had.
  bool prepare() { return prepared_ || columns_.allocate(floats_); }

  // [depth][kTileLanes], until the next call.
  const float* columns(int64_t panel) {
    if (prepared_) return prepared_ + panel * floats_;
    raw_.pack(panel, columns_.data);
    return columns_.data;
  }

  // Lets values of panel `panel`, from the `depth`th of its columns on, come into the second cache
  // while `tile` multiplies as many: what falls to tile `part` of `parts`.
  void fetch(int64_t panel, int64_t depth, int64_t part, int64_t parts, PointwiseTile* tile) const {
    if (prepared_) {
      const int64_t steps = tile->runs * divide_up(tile->channels, int64_t(kLanes<float>));
      tile->ahead_pair = kLineFloats;
      tile->ahead_step = 2 * kLineFloats;
      tile->ahead_advance = 0;
      tile->ahead_count =
          static_cast<int>(divide_up(kLanes<float> * kTileLanes, parts * tile->ahead_step));
      tile->ahead = prepared_ + panel * floats_ + depth * kTileLanes +
                    part * steps * tile->ahead_count * tile->ahead_step;
      return;
    }
    // some of the filters, a line of each for a vector of channels
    const int64_t first = panel * kTileLanes + kTileLanes * part / parts;
    const int64_t last = panel * kTileLanes + kTileLanes * (part + 1) / parts;
    tile->ahead = raw_.w + least(first, raw_.count) * raw_.depth() + depth;
    tile->ahead_pair = raw_.depth();
    tile->ahead_step = 2 * raw_.depth();
    tile->ahead_advance = kLanes<float>;
    tile->ahead_count = static_cast<int>(divide_up(most(least(last, raw_.count) - first, 0), 2));
  }

 private:
  const float* const prepared_;
  const RawFilters raw_;
  const int64_t floats_;  // of a panel
  Scratch<float> columns_;
};

}  // namespace CMF_ISA
}  // namespace cmf

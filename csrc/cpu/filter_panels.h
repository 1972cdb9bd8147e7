// The filters of a convolution as columns, a panel of kTileLanes of them at a time.
#pragma once

#include "common/cache_size.h"
#include "cpu/parts.h"
#include "cpu/pointwise_tile.h"
#include "cpu/scratch.h"
#include "cpu/turn_filters.h"

namespace cmf {
namespace CMF_ISA {

constexpr int64_t kLeastWeights = 65536;  // whose packing is worth a second thread

// Whether the second cache keeps packed filters beside what else runs through it.
inline bool second_cache_keeps(int64_t floats) { return floats * 4 <= second_cache_bytes() / 4; }

// Lets packed filters come into the second cache while `tile` multiplies as many channels of its
// own, of `floats` for a vector of channels: what falls to tile `part` of `parts`.
inline void fetch_packed(const float* filters, int64_t floats, int64_t part, int64_t parts,
                         PointwiseTile* tile) {
  const int64_t steps = tile->runs * divide_up(tile->channels, int64_t(kLanes<float>));
  tile->ahead_pair = kLineFloats;
  tile->ahead_step = 2 * kLineFloats;
  tile->ahead_advance = 0;
  tile->ahead_count = static_cast<int>(divide_up(floats, parts * tile->ahead_step));
  tile->ahead = filters + part * steps * tile->ahead_count * tile->ahead_step;
}

// The same of `count` filters that nobody packed, `step` apart: some of them, a line of each for a
// vector of channels.
inline void fetch_rows(const float* filters, int64_t count, int64_t step, int64_t part,
                       int64_t parts, PointwiseTile* tile) {
  const int64_t first = count * part / parts, last = count * (part + 1) / parts;
  tile->ahead = filters + first * step;
  tile->ahead_pair = step;
  tile->ahead_step = 2 * step;
  tile->ahead_advance = kLanes<float>;
  tile->ahead_count = static_cast<int>(divide_up(last - first, int64_t(2)));
}

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
      fetch_packed(prepared_ + panel * floats_ + depth * kTileLanes, kLanes<float> * kTileLanes,
                   part, parts, tile);
    } else {
      const int64_t first = panel * kTileLanes;
      fetch_rows(raw_.w + first * raw_.depth() + depth, least(raw_.count - first, kTileLanes),
                 raw_.depth(), part, parts, tile);
    }
  }

 private:
  const float* const prepared_;
  const RawFilters raw_;
  const int64_t floats_;  // of a panel
  Scratch<float> columns_;
};

}  // namespace CMF_ISA
}  // namespace cmf

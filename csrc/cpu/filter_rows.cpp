#include "cpu/filter_rows.h"

#include "common/cache_size.h"
#include "cpu/activated_tiles.h"
#include "cpu/row_products.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

bool filters_kept(const ConvActPool2dProblem& p) {
  return second_cache_keeps(p.pool.channels * round_up(p.in_channels, kV));
}

class FilterRows {
 public:
  FilterRows(const ConvActPool2dProblem& p, const ConvForwardTensors& t,
             const PointwiseInput& input, int threads)
      : p_(p),
        t_(t),
        input_(input),
        area_(p.pool.height * p.pool.width),
        across_(divide_up(area_, int64_t(kTileLanes))),
        step_(round_up(p.in_channels, kV)),
        quick_(quick_activation(p.pool)),
        past_caches_(stores_past_caches(p, t, area_, kLineFloats)),
        threads_(product_threads(p, p.in_channels, threads)) {}

  // Filters that the second cache keeps are read again for every panel; others once for all panels
  // that it holds.
  bool run() {
    const ActPool2dProblem& pool = p_.pool;
    if (!bias_.allocate(pool.channels)) return false;
    const float* bias = static_cast<const float*>(t_.bias);
    for (int64_t k = 0; k < pool.channels; ++k) bias_.data[k] = bias ? bias[k] : 0.0f;
    const bool kept = filters_kept(p_);
    const int64_t all = pool.batch * across_, panel_floats = p_.in_channels * kTileLanes;
    const int64_t held = most(second_cache_bytes() / 2 / (panel_floats * 4), 1);
    const TileRows rows = {pool.channels};
    WorkUnits units;
    if (kept) {
      units.chunks = all;
      units.cuts = cuts_of(all, rows.tiles(), threads_);
    } else {
      units = share_out(WorkSide{all, kTileLanes}, WorkSide{rows.tiles(), kGemmRows},
                        divide_up(all, held), threads_);
    }
    const int64_t most_panels = divide_up(all, units.chunks);
    return in_parallel(units.chunks * units.cuts, threads_, [&](Range range) {
      Scratch<float> packed, filters;
      if (!packed.allocate(most_panels * panel_floats) ||
          (!t_.prepared && !filters.allocate(kGemmRows * step_))) {
        return false;
      }
      int64_t known = -1;  // the chunk that is packed
      for (int64_t unit = range.first; unit < range.last; ++unit) {
        const int64_t chunk = unit / units.cuts;
        const Range panels = part_of(all, static_cast<int>(chunk), static_cast<int>(units.chunks));
        const Range tiles = part_of(rows.tiles(), static_cast<int>(unit % units.cuts),
                                    static_cast<int>(units.cuts));
        for (int64_t panel = panels.first; chunk != known && panel < panels.last; ++panel) {
          pack_columns(p_, input_, panel / across_, pixels_of(panel),
                       packed.data + (panel - panels.first) * panel_floats);
        }
        known = chunk;
        const bool far =
            filter_bytes() >= kFetchedBytes && (!kept || chunk == range.first / units.cuts);
        multiply(packed.data, panels, rows, tiles, kept, far, filters.data);
      }
      if (past_caches_) fence_streams();
      return true;
    });
  }

 private:
  int64_t filter_bytes() const { return p_.pool.channels * p_.in_channels * 4; }

  Range pixels_of(int64_t panel) const {
    const int64_t first = panel % across_ * kTileLanes;
    return Range{first, least(first + kTileLanes, area_)};
  }

  // `next`: whether the panel behind these is packed after them. `far`: whether the filters may
  // come from memory. `scratch`: of a tile of filters, where nobody packed them.
  void multiply(const float* packed, Range panels, TileRows rows, Range tiles, bool next, bool far,
                float* scratch) const {
    const EvenParts parts = rows.parts();
    PointwiseTile tile;
    tile.channels = p_.in_channels;
    tile.bias = nullptr;
    tile.y_row = area_;
    tile.act = quick_;
    tile.past_caches = past_caches_;
    ActivatedTiles activated(p_.pool);
    for (int64_t i = tiles.first; i < tiles.last; ++i) {
      const int64_t row = parts.first(i);
      const int count = static_cast<int>(parts.size(i));
      if (t_.prepared) {
        tile.a = static_cast<const float*>(t_.prepared) + row * step_;
      } else {
        pack_filter_tile(p_, static_cast<const float*>(t_.w), static_cast<const float*>(t_.w_scale),
                         Range{row, row + count}, scratch);
        tile.a = scratch;
      }
      tile.row_bias = bias_.data + row;
      for (int64_t panel = panels.first; panel < panels.last; ++panel) {
        const Range pixels = pixels_of(panel);
        const int64_t n = panel / across_;
        tile.b = packed + (panel - panels.first) * p_.in_channels * kTileLanes;
        tile.columns = static_cast<int>(pixels.last - pixels.first);
        const int64_t offset = (n * p_.pool.image_channels + row) * area_ + pixels.first;
        tile.y = static_cast<float*>(t_.y) + offset;
        tile.residual = t_.residual ? static_cast<const float*>(t_.residual) + offset : nullptr;
        tile.ahead_count = 0;
        if (next && i == tiles.first && pixels.last < area_ && adjacent()) {
          tile.ahead = input_.x + n * p_.image_channels * p_.height * p_.width + pixels.last;
          tile.ahead_pair = kLineFloats;
          tile.ahead_step = p_.height * p_.width;
          tile.ahead_advance = 0;
          tile.ahead_count = kV;
        } else if (far && i + 1 < tiles.last) {
          fetch(parts, i + 1, panel - panels.first, panels.last - panels.first, &tile);
        }
        const PointwiseKernel kernel = pointwise_kernel_for(count, tile.columns > kV ? 2 : 1);
        if (quick_.kind == QuickActivation::kAfterwards) {
          activated.run(tile, count, kernel);
        } else {
          kernel(tile);
        }
      }
    }
    activated.finish();
  }

  bool adjacent() const { return p_.stride_height == 1 && p_.stride_width == 1; }

  // The filters of tile `i` come meanwhile: what falls to panel `part` of `panels`.
  void fetch(const EvenParts& parts, int64_t i, int64_t part, int64_t panels,
             PointwiseTile* tile) const {
    const int64_t row = parts.first(i), count = parts.size(i);
    if (t_.prepared) {
      fetch_packed(static_cast<const float*>(t_.prepared) + row * step_, count * kV, part, panels,
                   tile);
    } else {
      fetch_rows(static_cast<const float*>(t_.w) + row * p_.in_channels, count, p_.in_channels,
                 part, panels, tile);
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const PointwiseInput& input_;
  const int64_t area_;
  const int64_t across_;  // panels of an image
  const int64_t step_;    // C, rounded up to whole vectors
  const QuickActivation quick_;
  const bool past_caches_;
  const int threads_;
  Scratch<float> bias_;
};

}  // namespace

bool filter_rows_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t,
                         const PointwiseInput& input, int threads) {
  return FilterRows(p, t, input, threads).run();
}

bool filter_rows_read_weights(const ConvActPool2dProblem& p) {
  const int64_t pixels = p.pool.batch * p.pool.height * p.pool.width;
  return p.groups == 1 && !filters_kept(p) && pixels * p.in_channels * 4 <= second_cache_bytes();
}

}  // namespace CMF_ISA
}  // namespace cmf

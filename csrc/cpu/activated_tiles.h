// Tiles of products whose activation is too long for their kernel: the sums stay in the first
// cache, and are activated on their way to y.
#pragma once

#include "common/activation.h"
#include "cpu/pointwise_tile.h"

namespace cmf {
namespace CMF_ISA {

// Each tile is activated behind the products of the next one: sums that were stored just before
// are not yet in the cache, and loading them waits for it.
class ActivatedTiles {
 public:
  explicit ActivatedTiles(const ActPool2dProblem& problem) : p_(problem) {}

  // kernel(tile) multiplies; `tile` is what is wanted, its `act` kAfterwards. (Copies of the whole
  // struct would wait for the fields that were set just before.)
  template <class Kernel>
  void run(PointwiseTile& tile, int rows, const Kernel& kernel) {
    const Wanted wanted = {tile.y, tile.y_row, rows, tile.columns, tile.past_caches};
    const QuickActivation act = tile.act;
    // the lines come while the sums are computed: the activated ones are stored all at once
    for (int row = 0; row < rows && !tile.past_caches; ++row) {
      const float* line = tile.y + row * tile.y_row;
      __builtin_prefetch(line, 1);
      __builtin_prefetch(line + tile.columns - 1, 1);
    }
    tile.y = sums_[next_];
    tile.columns = tile.columns > kLanes<float> ? kTileLanes : kLanes<float>;
    tile.y_row = tile.columns;
    tile.act = no_activation();
    tile.past_caches = false;
    kernel(tile);
    tile.y_row = wanted.y_row;
    tile.columns = wanted.columns;
    tile.act = act;
    tile.past_caches = wanted.past_caches;
    finish();
    wanted_ = wanted;
    next_ = 1 - next_;
  }

  // The last tile.
  void finish() {
    if (wanted_.rows > 0) put(sums_[1 - next_]);
    wanted_.rows = 0;
  }

 private:
  struct Wanted {
    float* y;
    int64_t y_row;
    int rows;
    int columns;
    bool past_caches;
  };

  void put(const float* sums) const;
  template <Activation A>
  void put_with(float param, const float* sums) const;

  const ActPool2dProblem& p_;
  Wanted wanted_ = {};  // of the tile that is not yet stored
  int next_ = 0;
  alignas(64) float sums_[2][kGemmRows * kTileLanes];
};

}  // namespace CMF_ISA
}  // namespace cmf

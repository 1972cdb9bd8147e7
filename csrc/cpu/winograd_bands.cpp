#include "cpu/winograd_bands.h"

#include "cpu/integers.h"

namespace cmf {
namespace CMF_ISA {
namespace {

// Transformed tiles of a band: half of a common second-level cache; or, where the weights don't
// stay in a cache and must not come from memory too often, a part of the third.
constexpr int64_t kBandBytes = 512 * 1024;
constexpr int64_t kLargeBandBytes = 8 << 20;
#if defined(__AVX512F__)
constexpr int64_t kLargeWeightBytes = 16 << 20;
#else
// Measured on a Zen 3, whose guests see 12 MiB of a third cache of 32.
constexpr int64_t kLargeWeightBytes = 8 << 20;
#endif
// Above this weights are not in the second cache when a network comes back to them: what they cost
// is their way there.
constexpr int64_t kSharedWeightBytes = 1 << 20;
constexpr int64_t kMostCarriedWindow = 8;  // rows
constexpr int64_t kLeastTiles = 2 * kGemmRows;
constexpr int64_t kMostTiles = 16 * kGemmRows;
// Of a band that is all there is, transformed by every thread.
constexpr int64_t kMostWholeTiles = 168;
constexpr int64_t kMostWholeBytes = 10 << 20;

// Tiles along an axis of z, of which anything is made, and of y.
int64_t tiles_along(int64_t length, int64_t out_length, int outputs, TileStore store) {
  return divide_up(store != TileStore::kOutput ? 2 * out_length : length, outputs);
}

}  // namespace

bool WinogradBands::few_tiles(const ActPool2dProblem& pool, int outputs, TileStore store,
                              int64_t tile_floats, int64_t weight_floats) {
  const int64_t tiles = pool.batch * tiles_along(pool.height, pool.out_height, outputs, store) *
                        tiles_along(pool.width, pool.out_width, outputs, store);
  return weight_floats * int64_t(sizeof(float)) >= kSharedWeightBytes && tiles <= kMostWholeTiles &&
         tiles * tile_floats * int64_t(sizeof(float)) <= kMostWholeBytes;
}

WinogradBands::WinogradBands(const ActPool2dProblem& pool, int outputs, TileStore store,
                             int64_t tile_floats, int64_t weight_floats, bool whole, int threads)
    : pool_(pool), outputs_(outputs), store_(store) {
  const bool pairs = store != TileStore::kOutput;
  across_ = tiles_along(pool.width, pool.out_width, outputs, store);
  down_ = tiles_along(pool.height, pool.out_height, outputs, store);
  const int64_t weight_bytes = weight_floats * int64_t(sizeof(float));
  const bool large = weight_bytes >= kLargeWeightBytes;
  // what BandEpilogue pools shares the cache with the tiles
  const bool shares = store == TileStore::kOutput && pool.pool != Pool::kNone;
  const int64_t bytes = large ? kLargeBandBytes : (shares ? kBandBytes / 2 : kBandBytes);
  int64_t tiles = bytes / (tile_floats * int64_t(sizeof(float)));
  tiles = least(most(tiles, kLeastTiles), kMostTiles);
  // weights from memory are read once where all tiles are one block, and the threads share out the
  // output channels
  const int64_t k_blocks = divide_up(pool.channels, int64_t(kWinogradColumns));
  const bool single = whole || (weight_bytes >= kSharedWeightBytes && k_blocks >= threads &&
                                pool.batch * down_ * across_ <= kMostTileBlock);
  int64_t rows = least(most(tiles / across_, 1), most(pool.batch * down_ / threads, 1));
  if (single) rows = down_;
  // what a cut carries over is kept for every channel: images with high windows stay whole
  if (!pairs && pool.pool_height > kMostCarriedWindow) rows = down_;
  parts_ = divide_up(down_, rows);
  segments_ = pool.batch * parts_;
  const int64_t together = parts_ > 1 ? 1 : most(tiles / (down_ * across_), 1);
  bands_ = divide_up(segments_, together);
  if (single) {
    bands_ = 1;
  } else if (bands_ < 8 * threads) {  // whole rounds of the threads, where there are few
    bands_ = least(divide_up(bands_, threads) * threads, segments_);
  }
  for (int64_t band = 0; band < bands_; ++band)
    most_segments_ = most(most_segments_, segments(band));
  for (int64_t i = 0; i < parts_; ++i) {
    const Segment s = part(0, i);
    most_tile_rows_ = most(most_tile_rows_, s.tile_last - s.tile_first);
    most_rows_ = most(most_rows_, s.p_last - s.p_first);
    most_carry_ = most(most_carry_, s.carry);
  }
}

Segment WinogradBands::segment(int64_t band, int64_t i) const {
  const int64_t index = first_segment(band) + i;
  return part(index / parts_, index % parts_);
}

// How many rows of y follow from the first `rows` rows of z.
int64_t WinogradBands::complete_rows(int64_t rows) const {
  if (rows >= pool_.height) return pool_.out_height;
  const int64_t reach = rows + pool_.pool_pad_height - pool_.pool_height;
  if (reach < 0) return 0;
  return least(reach / pool_.pool_stride_height + 1, pool_.out_height);
}

Segment WinogradBands::part(int64_t n, int64_t i) const {
  const int64_t first = down_ * i / parts_;
  const int64_t last = down_ * (i + 1) / parts_;
  Segment s = {n, 0, 0, first, last, 0};
  if (store_ == TileStore::kOutput) {
    s.p_first = i == 0 ? 0 : complete_rows(first * outputs_);
    s.p_last = i + 1 == parts_ ? pool_.out_height : complete_rows(last * outputs_);
    const int64_t window = s.p_first * pool_.pool_stride_height - pool_.pool_pad_height;
    s.carry = most(first * outputs_ - most(window, 0), 0);
  } else {
    s.p_first = first * (outputs_ / 2);
    s.p_last = least(last * (outputs_ / 2), pool_.out_height);
  }
  return s;
}

}  // namespace CMF_ISA
}  // namespace cmf

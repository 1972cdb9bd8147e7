#include "cpu/winograd_bands.h"

namespace cmf {
namespace CMF_ISA {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int64_t kBandBytes = 512 * 1024;  // of transformed tiles: half of a common L2
constexpr int64_t kLeastTiles = 2 * kGemmRows;
constexpr int64_t kMostTiles = 16 * kGemmRows;

}  // namespace

WinogradBands::WinogradBands(const ActPool2dProblem& pool, int outputs, TileStore store,
                             int64_t tile_floats, int threads)
    : pool_(pool), outputs_(outputs), store_(store) {
  // columns and rows of z that anything is made of
  const bool pairs = store != TileStore::kOutput;
  across_ = divide_up(pairs ? 2 * pool.out_width : pool.width, outputs);
  const int64_t down = divide_up(pairs ? 2 * pool.out_height : pool.height, outputs);
  int64_t tiles = kBandBytes / (tile_floats * int64_t(sizeof(float)));
  tiles = least(most(tiles, kLeastTiles), kMostTiles);
  // an image is cut where its rows of tiles are too many; windows that reach over the cut cost a
  // row of tiles twice, so such bands are higher
  const bool overlaps = store == TileStore::kOutput && pool.pool != Pool::kNone;
  int64_t rows = most(tiles / across_, 1);
  if (overlaps) rows = most(rows, 8);
  const int64_t total = pool.batch * down;
  rows = least(rows, most(total / threads, overlaps ? 4 : 1));
  parts_ = least(divide_up(down, rows), pool.out_height);
  segments_ = pool.batch * parts_;
  const int64_t together = parts_ > 1 ? 1 : most(tiles / (down * across_), 1);
  bands_ = divide_up(segments_, together);
  // whole rounds of the threads, where there are few
  if (bands_ < 8 * threads) bands_ = least(divide_up(bands_, threads) * threads, segments_);
  for (int64_t band = 0; band < bands_; ++band)
    most_segments_ = most(most_segments_, segments(band));
  for (int64_t i = 0; i < parts_; ++i) {
    const Segment s = part(0, i);
    most_tile_rows_ = most(most_tile_rows_, s.tile_last - s.tile_first);
    most_rows_ = most(most_rows_, s.p_last - s.p_first);
  }
}

Segment WinogradBands::segment(int64_t band, int64_t i) const {
  const int64_t index = first_segment(band) + i;
  return part(index / parts_, index % parts_);
}

Segment WinogradBands::part(int64_t n, int64_t i) const {
  Segment s = {n, 0, 0, 0, 0};
  if (store_ == TileStore::kOutput && pool_.pool != Pool::kNone) {
    // cut between rows of windows
    s.p_first = pool_.out_height * i / parts_;
    s.p_last = pool_.out_height * (i + 1) / parts_;
    const int64_t first = s.p_first * pool_.pool_stride_height - pool_.pool_pad_height;
    const int64_t last =
        (s.p_last - 1) * pool_.pool_stride_height - pool_.pool_pad_height + pool_.pool_height;
    s.tile_first = most(first, 0) / outputs_;
    s.tile_last = divide_up(least(last, pool_.height), outputs_);
    return s;
  }
  // cut between rows of tiles
  const int64_t of_tile = store_ == TileStore::kOutput ? outputs_ : outputs_ / 2;
  const int64_t down = divide_up(pool_.out_height, of_tile);
  s.tile_first = down * i / parts_;
  s.tile_last = down * (i + 1) / parts_;
  s.p_first = s.tile_first * of_tile;
  s.p_last = least(s.tile_last * of_tile, pool_.out_height);
  return s;
}

}  // namespace CMF_ISA
}  // namespace cmf

// How a Winograd convolution is cut into work: bands of tiles, for each thread one after another.
#pragma once

#include "cpu/winograd.h"

namespace cmf {
namespace CMF_ISA {

// What is done with a tile's outputs in registers.
enum class TileStore {
  kOutput,   // stored as they are; BandEpilogue pools them
  kMax,      // maxima of 2x2 windows, that lie inside tiles
  kAverage,  // averages of the activated 2x2 windows
};

// Rows p_first .. p_last - 1 of y in image n, and the rows of tiles that give them.
struct Segment {
  int64_t n;
  int64_t p_first;
  int64_t p_last;
  int64_t tile_first;
  int64_t tile_last;
  int64_t carry;  // rows of z before tile_first's that the windows need too
};

// Blocks of output channels whose products lie in cache together.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kChannelBlocks = 1;
#else
constexpr int64_t kChannelBlocks = 2;
#endif

// Consecutive segments that are transformed together.
class WinogradBands {
 public:
  // `outputs`: m of F(m, r). `tile_floats`: of a transformed tile. `weight_floats`: of all the
  // transformed weights, which every band reads once. `whole`: all is one band.
  WinogradBands(const ActPool2dProblem& pool, int outputs, TileStore store, int64_t tile_floats,
                int64_t weight_floats, bool whole, int threads);

  // Whether so few tiles share so many weights that these are best transformed part by part, each
  // for all tiles while it is in the second cache.
  static bool few_tiles(const ActPool2dProblem& pool, int outputs, TileStore store,
                        int64_t tile_floats, int64_t weight_floats);

  int64_t count() const { return bands_; }
  int64_t segments(int64_t band) const { return first_segment(band + 1) - first_segment(band); }
  Segment segment(int64_t band, int64_t i) const;

  int64_t tiles_across() const { return across_; }
  int64_t most_tiles() const { return most_segments_ * most_tile_rows_ * across_; }
  int64_t most_tile_rows() const { return most_tile_rows_; }  // of a segment
  int64_t most_segments() const { return most_segments_; }    // of a band
  int64_t most_rows() const { return most_rows_; }            // of y in a segment
  int64_t most_carry() const { return most_carry_; }
  int64_t parts() const { return parts_; }  // segments of an image

 private:
  int64_t first_segment(int64_t band) const { return segments_ * band / bands_; }
  Segment part(int64_t n, int64_t i) const;
  int64_t complete_rows(int64_t rows) const;

  const ActPool2dProblem& pool_;
  const int outputs_;
  const TileStore store_;
  int64_t across_;
  int64_t down_;  // rows of tiles in an image
  int64_t parts_;
  int64_t segments_;  // of all images
  int64_t bands_;
  int64_t most_segments_ = 0;
  int64_t most_tile_rows_ = 0;
  int64_t most_rows_ = 0;
  int64_t most_carry_ = 0;
};

}  // namespace CMF_ISA
}  // namespace cmf

// The backward of the Winograd convolutions: what its files share.
//
// With o a position of the convolution's output and a one of phase (i, j) of its padded input,
// along each axis:
//   dx[a] = sum over taps r of g[a - r] w[r],      dw[r] = sum over a of x[a] g[a - r].
// Counted from the end, b = last - a, the first is a convolution of g with the very same taps:
//   dx[b] = sum over r of g[b + r] w[r],           dw[r] = sum over b of x[b] g[b + r],
// and the second is the gradient of its weights. So one transform of a tile of g, with its halo,
// serves both: its products with the transformed weights give a tile of dx, those with the tile of
// x, spread by the transposed output transform, summed over all tiles, give dw. All phases share
// it: each is a set of further channels of x. A filter's parts come one after another, each with
// tiles of its own, and add to dx.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/gemm_tile.h"
#include "cpu/gradient_tile.h"
#include "cpu/integers.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/winograd.h"

namespace cmf {
namespace CMF_ISA {

// Tiles of m positions along one axis, the last position first.
struct GradientAxis {
  int64_t first;   // the least position that has an input pixel
  int64_t last;    // the greatest
  int64_t tiles;   // ceil((last - first + 1) / m)
  int64_t stride;  // pixel = stride · position + tap - pad
  int64_t pad;
  int64_t length;  // of x
  int64_t out;     // of z

  int64_t pixel(int64_t position, int64_t tap) const { return stride * position + tap - pad; }
};

// Up to kLanes channels of one phase of x, as one part of the filter sees them.
struct PhaseVector {
  int32_t tap_height;  // the first
  int32_t tap_width;
  int32_t first;  // channel
  int32_t lanes;
  // its phase has fewer taps than r: products at infinity are 0
  bool short_height;
  bool short_width;

  bool skips(int f, int alpha) const {
    return (short_height && f / alpha == alpha - 1) || (short_width && f % alpha == alpha - 1);
  }
};

// One or two neighbouring vectors of a phase.
struct PhaseGroup {
  int32_t vector;
  int32_t vectors;
};

// Strips of tiles of one image, whose gradient is expanded at once.
struct TileRun {
  int64_t n;
  int64_t strip_first;  // rows of tiles
  int64_t strip_last;
  int64_t tile;  // the first, in its super-block
};

// Phases that are computed together: their first taps, from begin to end - 1 along each axis.
struct PhaseSet {
  int64_t begin[2];
  int64_t end[2];
  bool adds = false;  // to dx, what a part behind the first gives
};
constexpr int kPhaseSets = kMostParts * kMostParts;

// The parts of a filter. Of one part all phases share their tiles, or those whose first pixels have
// different positions have tiles of their own: their grids fit x better, but dz is transformed for
// each. Whichever costs less. Returns how many sets there are.
int choose_phase_sets(const ConvActPool2dProblem& problem, int outputs, int taps,
                      PhaseSet (&sets)[kPhaseSets]);

// How a problem is cut: channels of x into vectors, tiles into strips (rows of an image's tiles),
// runs of strips, super-blocks of runs. Everything depends on the problem alone.
class GradientPlan {
 public:
  // `wants_weights`: whether the tiles of x are transformed too. `apart`: whether each thread has
  // super-blocks of its own. False where memory could not be had.
  bool prepare(const ConvActPool2dProblem& problem, const PhaseSet& set, int outputs, int taps,
               bool wants_weights, bool apart);

  const GradientAxis& vertical() const { return vertical_; }
  const GradientAxis& horizontal() const { return horizontal_; }
  int taps() const { return taps_; }
  bool adds() const { return adds_; }  // to dx what is already there

  int vectors() const { return vectors_; }
  const PhaseVector& vector(int64_t i) const { return vector_.data[i]; }
  int groups() const { return groups_; }
  const PhaseGroup& group(int64_t i) const { return group_.data[i]; }

  int64_t filters() const { return filters_; }    // K
  int64_t k_blocks() const { return k_blocks_; }  // vectors of K
  GemmBlocks filter_blocks() const {
    return GemmBlocks{static_cast<int>(k_blocks_), filter_index_.data,
                      filter_index_.data + k_blocks_};
  }

  int64_t supers() const { return supers_; }
  int64_t most_tiles() const { return most_tiles_; }
  int64_t most_runs() const { return most_runs_; }
  int64_t most_chunks() const;
  int64_t most_run_strips() const { return run_strips_; }
  int64_t frame_columns() const { return horizontal_.tiles * outputs_ + taps_ - 1; }
  int64_t frame_rows(int64_t strips) const { return strips * outputs_ + taps_ - 1; }

  // Channels of g that a frame holds side by side.
  int frame_lanes() const { return frame_lanes_; }

 private:
  friend class GradientBlock;

  GradientAxis vertical_;
  GradientAxis horizontal_;
  int outputs_ = 0;
  int taps_ = 0;
  bool adds_ = false;
  int vectors_ = 0;
  int groups_ = 0;
  int frame_lanes_ = 0;
  int64_t filters_ = 0;
  int64_t k_blocks_ = 0;
  int64_t strips_ = 0;
  int64_t supers_ = 0;
  int64_t run_strips_ = 0;
  int64_t most_tiles_ = 0;
  int64_t most_runs_ = 0;
  Scratch<PhaseVector> vector_;
  Scratch<PhaseGroup> group_;
  Scratch<int32_t> filter_index_;  // [k_blocks] 0, 1, ...; [k_blocks] lanes
};

// The runs and the chunks of tiles of one super-block.
class GradientBlock {
 public:
  static int64_t chunks_of(int64_t tiles) {
    return tiles > 0 && tiles <= kMostTileBlock ? 1 : divide_up(tiles, kTileBlock);
  }

  bool prepare(const GradientPlan& plan);
  void list(const GradientPlan& plan, int64_t super);

  int64_t runs() const { return runs_; }
  const TileRun& run(int64_t i) const { return run_.data[i]; }
  TileChunks chunks() const { return TileChunks{0, chunks_, chunk_.data}; }
  int64_t tiles() const { return chunk_.data[chunks_]; }

  // Where tile `tile` of image n lies in the grid.
  struct Place {
    int64_t n;
    int64_t strip;
    int64_t column;
  };
  Place place(const GradientPlan& plan, int64_t tile) const {
    const int64_t strip = strip_first_ + tile / plan.horizontal_.tiles;
    return Place{strip / plan.vertical_.tiles, strip % plan.vertical_.tiles,
                 tile % plan.horizontal_.tiles};
  }

 private:
  int64_t strip_first_ = 0;
  int64_t runs_ = 0;
  int chunks_ = 0;
  Scratch<TileRun> run_;
  Scratch<int64_t> chunk_;
};

// Walks over consecutive tiles and knows each one's chunk.
class ChunkCursor {
 public:
  ChunkCursor(const TileChunks& chunks, int64_t tile) : chunks_(chunks) {
    while (chunks_.first[chunk_ + 1] <= tile) ++chunk_;
    tile_ = tile;
  }
  void next() {
    if (++tile_ == chunks_.first[chunk_ + 1]) ++chunk_;
  }
  int64_t size() const { return chunks_.first[chunk_ + 1] - chunks_.first[chunk_]; }
  // The tile's vector of panel `panel`, at frequency 0.
  float* at(float* data, const PanelLayout& layout, int64_t panel) const {
    const int64_t first = chunks_.first[chunk_];
    return data + layout.at(chunk_, first, size(), 0, panel) + (tile_ - first) * kLanes<float>;
  }

 private:
  const TileChunks chunks_;
  int chunk_ = 0;
  int64_t tile_;
};

bool winograd_backward(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                       int threads);
const char* winograd_transposed_refusal(const ConvActPool2dProblem& problem);
int64_t winograd_transposed_size(const ConvActPool2dProblem& problem);
bool winograd_prepare_transposed(const ConvActPool2dProblem& problem, const void* w, void* prepared,
                                 int threads);

}  // namespace CMF_ISA
}  // namespace cmf

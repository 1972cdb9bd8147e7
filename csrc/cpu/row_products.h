// Products of packed rows, one a pixel of the convolution's output, and packed filters, with what
// follows them: what a 1x1 convolution and one of packed patches share.
#pragma once

#include "cpu/band_epilogue.h"
#include "cpu/filter_panels.h"
#include "cpu/parts.h"
#include "cpu/pointwise_pack.h"
#include "cpu/pointwise_tile.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {

// Where the rows' values come from.
class RowSource {
 public:
  virtual ~RowSource() = default;

  // Pixels, numbered from n · H' · W' on for image n, tile by tile as TileRows has them. `scratch`:
  // scratch_floats of them, of this thread.
  virtual void pack(Range pixels, float* scratch, float* packed) const = 0;

  // Row `pixel` where rows needn't be packed: they lie row_step() elements apart; 0: they must be.
  virtual const float* row(int64_t) const { return nullptr; }
  virtual int64_t row_step() const { return 0; }

  // The runs of a tile of pixels that are not padding alone.
  virtual Range runs(Range pixels) const = 0;

  // Of up to `pixels` of them.
  virtual int64_t scratch_floats(int64_t pixels) const = 0;
};

// How long a row is, and where it is cut.
struct RowLength {
  int64_t runs;
  int64_t channels;      // of a run
  int64_t packed_bytes;  // of rows that are packed together, about

  int64_t depth() const { return runs * channels; }
  // Floats of a packed row.
  int64_t step() const { return runs * round_up(channels, kLanes<float>); }
};

// Where the pixels of an NHWC y lie that are not side by side: elements from one to the next.
struct PixelSteps {
  int64_t column;
  int64_t row;
  int64_t image;
};

// Into how many chunks of pixels and cuts of the filters the work is divided.
struct WorkUnits {
  int64_t chunks;
  int64_t cuts;
};

// Some pixels by some panels of filters, of one thread.
struct RowChunk {
  const float* packed;  // the pixels, as RowSource packs them
  float* sums;          // [pixels][kTileLanes]
  Range pixels;
  Range panels;
  float* y;  // of the first pixel and panel
  const float* residual = nullptr;
  int64_t y_row;
  QuickActivation act;
  bool past_caches = false;
  const float* ahead = nullptr;  // what will be packed next
  int64_t fetched = 0;           // the panels before this one come from memory, perhaps
};

class RowProducts {
 public:
  // `filters`: read where `tensors.prepared` is null, which else has the panels of FilterPanels.
  // `steps`: of an NHWC y without a pooling and a long activation, or null.
  RowProducts(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
              const RowSource& source, const RowLength& length, int threads,
              const RawFilters& filters, const PixelSteps* steps = nullptr);

  // False where memory could not be had.
  bool run();

 private:
  void multiply(const RowChunk& chunk, FilterPanels& filters) const;
  WorkUnits units() const;
  void spread(const PointwiseTile& tile, Range pixels, int64_t panel) const;
  bool run_pixels() const;
  bool run_bands() const;

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const RowSource& source_;
  const RowLength length_;
  const RawFilters filters_;
  const int64_t step_;    // floats of a packed row
  const int64_t panels_;  // of filters
  const QuickActivation quick_;
  const int64_t pixel_;  // of y
  bool past_caches_;
  const int threads_;
  const PixelSteps* const steps_;
  Scratch<float> bias_;  // filled up to whole panels
};

constexpr int64_t kFetchedBytes = INT64_C(1) << 18;  // of weights, that are fetched ahead

// Whether the filters are read where they are, no slower than packed ones that are kept: the packed
// rows of all pixels stay in the second cache beside them, which they are packed for once.
bool reads_raw_filters(const ConvActPool2dProblem& problem, const RowLength& length);

// Pixels, or filters: parts that are not divided, and how many each has.
struct WorkSide {
  int64_t parts;
  int64_t size;
};

// At least `fewest` chunks, and cuts for the threads that they leave idle: each unit packs both its
// pixels and its filters.
WorkUnits share_out(const WorkSide& pixels, const WorkSide& filters, int64_t fewest, int threads);

// How many threads the products of one convolution are worth.
int product_threads(const ConvActPool2dProblem& problem, int64_t depth, int threads);

// Whether y is stored past the caches, where its readers would hardly find it; `run`: of values
// that lie side by side, `pixel`: as y_pixel.
bool stores_past_caches(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                        int64_t run, int64_t pixel);

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/row_products.h"

#include "common/cache_size.h"
#include "cpu/activated_tiles.h"
#include "cpu/pooled_bands.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kLargeBytes = INT64_C(1) << 23;
constexpr int64_t kMostTiles = 8;           // of rows that are packed together
constexpr int64_t kMostTilesTogether = 64;  // the same, of long rows
constexpr int64_t kMostReadings = 2;  // of filters, that are less than to look for writes to them
constexpr int64_t kProductsPerThread = INT64_C(1) << 18;
// Of a row that is summed at once, and of its blocks if it is longer.
constexpr int64_t kWholeDepth = 1024;
constexpr int64_t kBlockDepth = 256;

// What is the same of a tile for all panels of filters.
struct TilePart {
  int64_t first;  // of its pixels
  int count;
  Range runs;
  const float* a;              // of all runs
  PointwiseKernel kernels[2];  // by vectors of columns, less 1
};
constexpr int64_t kMostParts = kMostTilesTogether;

// Tiles `begin` and on of a chunk, as many as `parts` has room for; how many there are.
int64_t list_parts(const RowSource& source, const RowChunk& chunk, const EvenParts& even,
                   int64_t begin, int64_t step, TilePart (&parts)[kMostParts]) {
  const int64_t count = least(even.count() - begin, kMostParts);
  const bool apart = source.row_step() > 0;
  for (int64_t i = 0; i < count; ++i) {
    TilePart& part = parts[i];
    part.first = even.first(begin + i);
    part.count = static_cast<int>(even.size(begin + i));
    const int64_t first = chunk.pixels.first + part.first;
    part.runs = source.runs(Range{first, first + part.count});
    part.a = apart ? source.row(first) : chunk.packed + part.first * step;
    part.kernels[0] = pointwise_kernel_for(part.count, 1, apart);
    part.kernels[1] = pointwise_kernel_for(part.count, 2, apart);
  }
  return count;
}

// The channels of a row in blocks: what a tile reads of both operands stays in the first cache
// while the others of the panel read it too, and long sums round less.
class RowBlocks {
 public:
  explicit RowBlocks(const RowLength& length) : length_(length) {
    const bool whole = length.depth() <= kWholeDepth;
    runs_ = whole ? length.runs : least(most(kBlockDepth / length.channels, 1), length.runs);
    const int64_t cuts = whole ? 1 : divide_up(length.channels, kBlockDepth);
    channels_ = round_up(divide_up(length.channels, cuts), kV);
    across_ = divide_up(length.channels, channels_);
  }

  int64_t count() const { return divide_up(length_.runs, runs_) * across_; }
  Range runs(int64_t block) const {
    const int64_t first = block / across_ * runs_;
    return Range{first, least(first + runs_, length_.runs)};
  }
  Range channels(int64_t block) const {
    const int64_t first = block % across_ * channels_;
    return Range{first, least(first + channels_, length_.channels)};
  }

 private:
  const RowLength length_;
  int64_t runs_;      // of a block: several whole ones
  int64_t channels_;  // or some of one
  int64_t across_;    // blocks of a run
};

bool filters_kept(const ConvActPool2dProblem& p, const RowLength& length) {
  return second_cache_keeps(round_up(p.pool.channels, kTileLanes) * length.depth());
}

// Of a row of the convolution's output, with its part of a band's packed rows: those stay in the
// second cache, beside filters that it keeps in less of it.
int64_t band_row_bytes(const ConvActPool2dProblem& p, const RowLength& length) {
  const int64_t room = filters_kept(p, length) ? length.packed_bytes : second_cache_bytes() / 2;
  return p.pool.width * most(kTileLanes, length.step() * kBandBytes / room) * 4;
}

}  // namespace

bool reads_raw_filters(const ConvActPool2dProblem& p, const RowLength& length) {
  if (p.groups != 1 || p.pool.pool != Pool::kNone || filters_kept(p, length)) return false;
  const int64_t pixels = p.pool.batch * p.pool.height * p.pool.width;
  if (pixels * length.step() * 4 > second_cache_bytes()) return false;
  return p.pool.channels_last ||
         p.pool.batch * PooledBands(p.pool, band_row_bytes(p, length)).count <= kMostReadings;
}

WorkUnits share_out(const WorkSide& pixels, const WorkSide& filters, int64_t fewest, int threads) {
  // Of a vector of either, in products: what packing it costs. (Half of the pixels another thread
  // has just written.)
  constexpr int64_t kPixelCost = 24, kFilterCost = 12;
  WorkUnits best = {fewest, 1};
  int64_t least_cost = INT64_MAX;
  for (int64_t chunks = fewest; chunks < least(fewest + threads, pixels.parts + 1); ++chunks) {
    const int64_t cuts = least(divide_up(int64_t(threads), chunks), filters.parts);
    const int64_t rows = divide_up(pixels.parts, chunks) * pixels.size;
    const int64_t columns = divide_up(filters.parts, cuts) * filters.size;
    const int64_t cost = divide_up(chunks * cuts, int64_t(threads)) *
                         (rows * columns + rows * kPixelCost + columns * kFilterCost);
    if (cost >= least_cost) continue;
    least_cost = cost;
    best = WorkUnits{chunks, cuts};
  }
  return best;
}

int product_threads(const ConvActPool2dProblem& p, int64_t depth, int threads) {
  const int64_t products = p.pool.batch * p.pool.height * p.pool.width * p.pool.channels * depth;
  return static_cast<int>(most(1, least(threads, products / kProductsPerThread)));
}

bool stores_past_caches(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int64_t run,
                        int64_t pixel) {
  return run % kLineFloats == 0 && pixel % kLineFloats == 0 &&
         reinterpret_cast<uintptr_t>(t.y) % CMF_VECTOR_BYTES == 0 &&
         p.pool.batch * p.pool.height * p.pool.width * p.pool.image_channels * 4 > kLargeBytes;
}

RowProducts::RowProducts(const ConvActPool2dProblem& p, const ConvForwardTensors& t,
                         const RowSource& source, const RowLength& length, int threads,
                         const RawFilters& filters, const PixelSteps* steps)
    : p_(p),
      t_(t),
      source_(source),
      length_(length),
      filters_(filters),
      step_(length.step()),
      panels_(divide_up(p.pool.channels, kTileLanes)),
      quick_(quick_activation(p.pool)),
      pixel_(y_pixel(p.pool, t)),
      past_caches_(stores_past_caches(p, t, p.pool.channels, pixel_)),
      threads_(product_threads(p, length.depth(), threads)),
      steps_(steps) {
  if (steps) past_caches_ = false;
}

bool RowProducts::run() {
  if (!bias_.allocate(panels_ * kTileLanes)) return false;
  const float* bias = static_cast<const float*>(t_.bias);
  for (int64_t k = 0; k < panels_ * kTileLanes; ++k) {
    bias_.data[k] = bias && k < p_.pool.channels ? bias[k] : 0.0f;
  }
  return p_.pool.pool == Pool::kNone && p_.pool.channels_last ? run_pixels() : run_bands();
}

// Tiles of packed pixels by panels and their blocks: the first panel's columns go to y.
void RowProducts::multiply(const RowChunk& chunk, FilterPanels& filters) const {
  PointwiseTile tile;
  tile.row_bias = nullptr;
  alignas(64) float apart[kGemmRows * kTileLanes];
  alignas(64) static const float zeros[kTileLanes] = {};
  tile.a_row = source_.row_step();
  ActivatedTiles activated(p_.pool);
  const RowBlocks blocks(length_);
  const EvenParts even = TileRows{chunk.pixels.last - chunk.pixels.first}.parts();
  const int64_t run = round_up(length_.channels, kV);
  TilePart parts[kMostParts];
  for (int64_t begin = 0; begin < even.count(); begin += kMostParts) {
    const int64_t count = list_parts(source_, chunk, even, begin, step_, parts);
    for (int64_t panel = chunk.panels.first; panel < chunk.panels.last; ++panel) {
      const int columns =
          static_cast<int>(least(p_.pool.channels - panel * kTileLanes, kTileLanes));
      const int vectors = columns > kV ? 2 : 1;
      const float* panel_columns = filters.columns(panel);
      for (int64_t block = 0; block < blocks.count(); ++block) {
        const Range runs = blocks.runs(block), channels = blocks.channels(block);
        const bool first = block == 0, last = block + 1 == blocks.count();
        tile.channels = channels.last - channels.first;
        tile.bias = first ? bias_.data + panel * kTileLanes : zeros;
        tile.act = last ? chunk.act : no_activation();
        for (int64_t i = 0; i < count; ++i) {
          const TilePart& part = parts[i];
          const int64_t first_run = most(runs.first, part.runs.first);
          tile.runs = most(least(runs.last, part.runs.last) - first_run, 0);
          if (tile.runs == 0 && !first && !last) continue;
          const int64_t a_rows = tile.a_row ? 1 : part.count;
          tile.a = part.a + (first_run * run + channels.first) * a_rows;
          tile.b = panel_columns + (first_run * length_.channels + channels.first) * kTileLanes;
          float* sums = chunk.sums + part.first * kTileLanes;
          tile.sums = first ? nullptr : sums;
          const int64_t offset =
              part.first * chunk.y_row + (panel - chunk.panels.first) * kTileLanes;
          if (last) {
            tile.y = steps_ ? apart : chunk.y + offset;
            tile.y_row = steps_ ? kTileLanes : chunk.y_row;
            tile.columns = columns;
          } else {
            tile.y = sums;
            tile.y_row = tile.columns = vectors * kV;
          }
          tile.residual = last && chunk.residual ? chunk.residual + offset : nullptr;
          tile.past_caches = last && chunk.past_caches;
          if (chunk.ahead && panel == chunk.panels.first) {
            tile.ahead = chunk.ahead + part.first * p_.in_channels + channels.first * part.count;
            tile.ahead_count = (part.count + 1) / 2;
            tile.ahead_pair = kLineFloats;
            tile.ahead_step = 2 * kLineFloats;
            tile.ahead_advance = 0;
          } else if (panel + 1 < chunk.fetched) {
            filters.fetch(panel + 1, first_run * length_.channels + channels.first, i, count,
                          &tile);
          } else {
            tile.ahead_count = 0;
          }
          if (last && chunk.act.kind == QuickActivation::kAfterwards) {
            activated.run(tile, part.count, part.kernels[vectors - 1]);
          } else {
            part.kernels[vectors - 1](tile);
          }
          const int64_t pixel = chunk.pixels.first + part.first;
          if (last && steps_) spread(tile, Range{pixel, pixel + part.count}, panel);
        }
      }
    }
  }
  activated.finish();
}

// A tile's pixels, to where they belong.
void RowProducts::spread(const PointwiseTile& tile, Range pixels, int64_t panel) const {
  const ActPool2dProblem& pool = p_.pool;
  int64_t column = pixels.first % pool.width;
  int64_t row = pixels.first / pool.width % pool.height;
  int64_t n = pixels.first / pool.width / pool.height;
  float* y = static_cast<float*>(t_.y) + panel * kTileLanes;
  for (int64_t i = 0; i < pixels.last - pixels.first; ++i) {
    float* target = y + n * steps_->image + row * steps_->row + column * steps_->column;
    const float* source = tile.y + i * kTileLanes;
    for (int c = 0; c < tile.columns; c += kV) {
      store_lanes<float>(target + c, load<float>(source + c),
                         tile.columns - c < kV ? tile.columns - c : kV);
    }
    if (++column < pool.width) continue;
    column = 0;
    if (++row < pool.height) continue;
    row = 0;
    ++n;
  }
}

// Filters that a second cache keeps are read again for every chunk of a few pixels, others once for
// all the pixels that it can hold.
WorkUnits RowProducts::units() const {
  const int64_t pixels = p_.pool.batch * p_.pool.height * p_.pool.width;
  const bool kept = filters_kept(p_, length_);
  const int64_t bytes = kept ? length_.packed_bytes : second_cache_bytes() / 2;
  const int64_t tiles =
      least(bytes / (step_ * 4) / kGemmRows, kept ? kMostTiles : kMostTilesTogether);
  const int64_t chunks = divide_up(pixels, most(1, tiles) * kGemmRows);
  if (kept) return WorkUnits{chunks, cuts_of(chunks, panels_, threads_)};
  return share_out(WorkSide{pixels, 1}, WorkSide{panels_, kTileLanes}, chunks, threads_);
}

// NHWC y without a pooling: chunks of all images' pixels.
bool RowProducts::run_pixels() const {
  const ActPool2dProblem& pool = p_.pool;
  const int64_t pixels = pool.batch * pool.height * pool.width;
  const WorkUnits units = this->units();
  const int64_t most_pixels = divide_up(pixels, units.chunks);
  const bool kept = filters_kept(p_, length_);
  const bool blocked = RowBlocks(length_).count() > 1;
  // weights that may come from memory, where a thread reads them for the first time
  const bool large = pool.channels * length_.depth() * 4 >= kFetchedBytes;
  const bool plain = length_.runs == 1 && p_.x_channels_last && p_.image_channels == p_.in_channels;
  const float* residual = static_cast<const float*>(t_.residual);
  return in_parallel(units.chunks * units.cuts, threads_, [&](Range range) {
    Scratch<float> packed, scratch, sums;
    FilterPanels filters(t_.prepared, filters_, length_.depth());
    if (!packed.allocate(most_pixels * step_) || !filters.prepare() ||
        !scratch.allocate(source_.scratch_floats(most_pixels)) ||
        (blocked && !sums.allocate(most_pixels * kTileLanes))) {
      return false;
    }
    int64_t known = -1;  // the chunk that is packed
    for (int64_t unit = range.first; unit < range.last; ++unit) {
      RowChunk chunk;
      chunk.pixels =
          part_of(pixels, static_cast<int>(unit / units.cuts), static_cast<int>(units.chunks));
      chunk.panels =
          part_of(panels_, static_cast<int>(unit % units.cuts), static_cast<int>(units.cuts));
      if (!source_.row_step() && unit / units.cuts != known) {
        source_.pack(chunk.pixels, scratch.data, packed.data);
      }
      known = unit / units.cuts;
      chunk.packed = packed.data;
      chunk.sums = sums.data;
      const int64_t offset = chunk.pixels.first * pixel_ + chunk.panels.first * kTileLanes;
      chunk.y = static_cast<float*>(t_.y) + offset;
      chunk.residual = residual ? residual + offset : nullptr;
      chunk.y_row = pixel_;
      chunk.act = quick_;
      chunk.past_caches = past_caches_;
      chunk.ahead = plain && kept && unit + 1 < range.last
                        ? static_cast<const float*>(t_.x) + chunk.pixels.last * p_.in_channels
                        : nullptr;
      const bool fetches = large && (!kept || known == range.first / units.cuts);
      chunk.fetched = fetches ? chunk.panels.last : 0;
      multiply(chunk, filters);
    }
    if (past_caches_) fence_streams();
    return true;
  });
}

// All else: bands of kTileLanes filters.
bool RowProducts::run_bands() const {
  const ActPool2dProblem& pool = p_.pool;
  const PooledBands bands(pool, band_row_bytes(p_, length_));
  const int64_t most_pixels = bands.most * pool.width;
  const int64_t cuts = cuts_of(pool.batch * bands.count, panels_, threads_);
  return in_parallel(pool.batch * bands.count * cuts, threads_, [&](Range units) {
    Scratch<float> packed, scratch, sums;
    FilterPanels filters(t_.prepared, filters_, length_.depth());
    BandEpilogue epilogue(pool, kTileLanes, bands.rows);
    if (!packed.allocate(most_pixels * (step_ + kTileLanes)) || !filters.prepare() ||
        !scratch.allocate(source_.scratch_floats(most_pixels)) || !epilogue.prepare() ||
        !sums.allocate(most_pixels * kTileLanes)) {
      return false;
    }
    float* z = packed.data + most_pixels * step_;
    for (int64_t i = 0; i < most_pixels * kTileLanes; ++i) z[i] = 0.0f;
    int64_t known = -1;  // the band that is packed
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t n = unit / cuts / bands.count;
      const int64_t index = unit / cuts % bands.count;
      const Range panels = part_of(panels_, static_cast<int>(unit % cuts), static_cast<int>(cuts));
      const Range rows = band_rows(pool, band_of(pool, bands, n, index, 0, kTileLanes));
      const int64_t first = n * pool.height;
      const Range pixels = {(first + rows.first) * pool.width, (first + rows.last) * pool.width};
      if (!source_.row_step() && unit / cuts != known) {
        source_.pack(pixels, scratch.data, packed.data);
      }
      known = unit / cuts;
      for (int64_t panel = panels.first; panel < panels.last; ++panel) {
        RowChunk chunk;
        chunk.packed = packed.data;
        chunk.sums = sums.data;
        chunk.pixels = pixels;
        chunk.panels = Range{panel, panel + 1};
        chunk.y = z;
        chunk.y_row = kTileLanes;
        chunk.act = no_activation();
        chunk.fetched = filters_kept(p_, length_) ? 0 : panels.last;
        multiply(chunk, filters);
        epilogue.pool(z, rows.first, band_of(pool, bands, n, index, panel * kTileLanes, kTileLanes),
                      t_);
      }
    }
    return true;
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/row_products.h"

#include "cpu/activated_tiles.h"
#include "cpu/pooled_bands.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kLargeBytes = INT64_C(1) << 23;
constexpr int64_t kMostTiles = 8;  // of rows that are packed together
constexpr int64_t kProductsPerThread = INT64_C(1) << 18;
// Products that are added one after another: long sums round more.
constexpr int64_t kSummedDepth = 512;

// What is the same of a tile for all panels of filters.
struct TilePart {
  int64_t first;  // of its pixels
  int count;
  Range runs;
  const float* a;
  PointwiseKernel kernels[2];  // by vectors of columns, less 1
};
constexpr int64_t kMostParts = 16;

// A tile whose sums are longer: by pieces, each summed from zero.
void long_tile(const PointwiseTile& tile, const RowLength& length, int count) {
  alignas(64) static const float zeros[kTileLanes] = {};
  alignas(64) float part[kGemmRows * kTileLanes], total[kGemmRows * kTileLanes];
  const int vectors = tile.columns > kV ? 2 : 1;
  const PointwiseKernel kernel = pointwise_kernel_for(count, vectors);
  const int64_t together = most(1, kSummedDepth / length.channels);  // runs
  const int64_t step = round_up(length.channels, kV);
  PointwiseTile piece = tile;
  piece.y = total;
  piece.y_row = kTileLanes;
  piece.columns = vectors * kV;
  piece.act = no_activation();
  piece.residual = nullptr;
  piece.past_caches = false;
  for (int64_t run = 0; run < tile.runs; run += together) {
    piece.runs = least(together, tile.runs - run);
    for (int64_t c = 0; c < length.channels; c += kSummedDepth) {
      piece.channels = least(length.channels - c, kSummedDepth);
      piece.a = tile.a + (run * step + c) * count;
      piece.b = tile.b + (run * length.channels + c) * kTileLanes;
      kernel(piece);
      piece.ahead_count = 0;
      if (piece.y == part) {
        for (int i = 0; i < count * vectors; ++i) {
          float* sum = total + i / vectors * kTileLanes + i % vectors * kV;
          store<float>(sum, load<float>(sum) + load<float>(sum - total + part));
        }
      }
      piece.y = part;
      piece.bias = zeros;
    }
  }
  for (int row = 0; row < count; ++row) {
    for (int v = 0; v < vectors; ++v) {
      const int lanes = static_cast<int>(least(tile.columns - v * kV, kV));
      const int64_t offset = row * tile.y_row + v * kV;
      Vec<float> z = load<float>(total + row * kTileLanes + v * kV);
      if (tile.residual) z += load_lanes<float>(tile.residual + offset, lanes);
      if (tile.past_caches) {
        stream(tile.y + offset, tile.act(z));
      } else {
        store_lanes<float>(tile.y + offset, tile.act(z), lanes);
      }
    }
  }
}

}  // namespace

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
                         const PixelSteps* steps)
    : p_(p),
      t_(t),
      source_(source),
      length_(length),
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

// Tiles of packed pixels by panels: the first one's columns go to y. `ahead`: what will be packed
// next, or null.
void RowProducts::multiply(const float* packed, Range pixels, Range panels, float* y,
                           const float* residual, int64_t y_row, QuickActivation act,
                           bool past_caches, const float* ahead, bool fetches) const {
  PointwiseTile tile;
  tile.ahead_step = 32;
  tile.channels = length_.channels;
  tile.row_bias = nullptr;
  alignas(64) float apart[kGemmRows * kTileLanes];
  tile.a_row = source_.row_step();
  tile.y_row = steps_ ? kTileLanes : y_row;
  tile.act = act;
  tile.past_caches = past_caches;
  ActivatedTiles activated(p_.pool);
  const EvenParts even = TileRows{pixels.last - pixels.first}.parts();
  const int64_t run = round_up(length_.channels, kV);
  // pairs of lines of the next panel for every kLanes channels, and what they are of a tile's
  const int pairs_of_tile = static_cast<int>(divide_up(kV * kTileLanes / 32, even.count()));
  const int64_t ahead_of_tile =
      length_.runs * divide_up(length_.channels, int64_t(kV)) * pairs_of_tile * 32;
  TilePart parts[kMostParts];
  for (int64_t begin = 0; begin < even.count(); begin += kMostParts) {
    const int count_of_parts = static_cast<int>(least(even.count() - begin, kMostParts));
    for (int i = 0; i < count_of_parts; ++i) {
      TilePart& part = parts[i];
      part.first = even.first(begin + i);
      part.count = static_cast<int>(even.size(begin + i));
      const int64_t first = pixels.first + part.first;
      part.runs = source_.runs(Range{first, first + part.count});
      part.a = tile.a_row ? source_.row(first)
                          : packed + part.first * step_ + part.runs.first * run * part.count;
      part.kernels[0] = pointwise_kernel_for(part.count, 1, tile.a_row > 0);
      part.kernels[1] = pointwise_kernel_for(part.count, 2, tile.a_row > 0);
    }
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      tile.columns = static_cast<int>(least(p_.pool.channels - panel * kTileLanes, kTileLanes));
      const float* filters =
          static_cast<const float*>(t_.prepared) + panel * kTileLanes * length_.depth();
      tile.bias = bias_.data + panel * kTileLanes;
      for (int i = 0; i < count_of_parts; ++i) {
        const TilePart& part = parts[i];
        tile.runs = part.runs.last - part.runs.first;
        tile.a = part.a;
        tile.b = filters + part.runs.first * length_.channels * kTileLanes;
        const int64_t offset = part.first * y_row + (panel - panels.first) * kTileLanes;
        tile.y = steps_ ? apart : y + offset;
        tile.residual = residual ? residual + offset : nullptr;
        if (ahead && panel == panels.first) {  // one tile's pixels are as long as the next one's
          tile.ahead = ahead + part.first * p_.in_channels;
          tile.ahead_count = (part.count + 1) / 2;
        } else {  // the tiles share the next panel: it may come from memory
          tile.ahead = filters + kTileLanes * length_.depth() + (begin + i) * ahead_of_tile;
          tile.ahead_count = fetches && panel + 1 < panels.last ? pairs_of_tile : 0;
        }
        const auto products = [&](const PointwiseTile& wanted) {
          if (length_.runs > 1 && wanted.runs * length_.channels > kSummedDepth) {
            long_tile(wanted, length_, part.count);
          } else {
            part.kernels[wanted.columns > kV](wanted);
          }
        };
        if (act.kind == QuickActivation::kAfterwards) {
          activated.run(tile, part.count, products);
        } else {
          products(tile);
        }
        const int64_t first = pixels.first + part.first;
        if (steps_) spread(tile, Range{first, first + part.count}, panel);
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

// NHWC y without a pooling: chunks of all images' pixels.
bool RowProducts::run_pixels() const {
  const ActPool2dProblem& pool = p_.pool;
  const int64_t pixels = pool.batch * pool.height * pool.width;
  const int64_t tiles = length_.packed_bytes / (step_ * 4) / kGemmRows;
  const int64_t chunk_pixels = most(1, least(tiles, kMostTiles)) * kGemmRows;
  const int chunks = static_cast<int>(divide_up(pixels, chunk_pixels));
  const int64_t cuts = cuts_of(chunks, panels_, threads_);
  // weights that may come from memory, where a thread reads them for the first time
  const bool large = pool.channels * length_.depth() * 4 >= kFetchedBytes;
  const bool plain = length_.runs == 1 && p_.x_channels_last && p_.image_channels == p_.in_channels;
  return in_parallel(chunks * cuts, threads_, [&](Range units) {
    Scratch<float> packed, scratch;
    if (!packed.allocate(chunk_pixels * step_) ||
        !scratch.allocate(source_.scratch_floats(chunk_pixels))) {
      return false;
    }
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const Range chunk = part_of(pixels, static_cast<int>(unit / cuts), chunks);
      const Range panels = part_of(panels_, static_cast<int>(unit % cuts), static_cast<int>(cuts));
      if (!source_.row_step()) source_.pack(chunk, scratch.data, packed.data);
      const int64_t offset = chunk.first * pixel_ + panels.first * kTileLanes;
      const float* residual = static_cast<const float*>(t_.residual);
      multiply(packed.data, chunk, panels, static_cast<float*>(t_.y) + offset,
               residual ? residual + offset : nullptr, pixel_, quick_, past_caches_,
               plain && unit + 1 < units.last
                   ? static_cast<const float*>(t_.x) + chunk.last * p_.in_channels
                   : nullptr,
               large && unit / cuts == units.first / cuts);
    }
    if (past_caches_) fence_streams();
    return true;
  });
}

// All else: bands of kTileLanes filters.
bool RowProducts::run_bands() const {
  const ActPool2dProblem& pool = p_.pool;
  const int64_t packed_as_band = step_ * kBandBytes / length_.packed_bytes;
  const PooledBands bands(pool, pool.width * most(kTileLanes, packed_as_band) * 4);
  const int64_t most_pixels = bands.most * pool.width;
  const int64_t cuts = cuts_of(pool.batch * bands.count, panels_, threads_);
  return in_parallel(pool.batch * bands.count * cuts, threads_, [&](Range units) {
    Scratch<float> packed, scratch;
    BandEpilogue epilogue(pool, kTileLanes, bands.rows);
    if (!packed.allocate(most_pixels * (step_ + kTileLanes)) ||
        !scratch.allocate(source_.scratch_floats(most_pixels)) || !epilogue.prepare()) {
      return false;
    }
    float* z = packed.data + most_pixels * step_;
    for (int64_t i = 0; i < most_pixels * kTileLanes; ++i) z[i] = 0.0f;
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t n = unit / cuts / bands.count;
      const int64_t index = unit / cuts % bands.count;
      const Range panels = part_of(panels_, static_cast<int>(unit % cuts), static_cast<int>(cuts));
      const Range rows = band_rows(pool, band_of(pool, bands, n, index, 0, kTileLanes));
      const int64_t first = n * pool.height;
      const Range pixels = {(first + rows.first) * pool.width, (first + rows.last) * pool.width};
      if (!source_.row_step()) source_.pack(pixels, scratch.data, packed.data);
      for (int64_t panel = panels.first; panel < panels.last; ++panel) {
        multiply(packed.data, pixels, Range{panel, panel + 1}, z, nullptr, kTileLanes,
                 no_activation(), false, nullptr, false);
        epilogue.pool(z, rows.first, band_of(pool, bands, n, index, panel * kTileLanes, kTileLanes),
                      t_);
      }
    }
    return true;
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

// What one thread does of Winograd's forward.
//
// A band of tiles is transformed to V [frequency][part][channel block][tile][lane]; then, for a
// block of output channels and a block of tiles at a time, one product a frequency gives M
// [frequency][tile][column], whose inverse transform, windows and bias stay in registers. Only what
// is left of the windows is stored.
#pragma once

#include <string.h>

#include "cpu/band_epilogue.h"
#include "cpu/integers.h"
#include "cpu/scratch.h"
#include "cpu/winograd.h"
#include "cpu/winograd_bands.h"
#include "cpu/winograd_output.h"
#include "cpu/winograd_prefetch.h"
#include "cpu/winograd_source.h"
#include "cpu/winograd_weights.h"

namespace cmf {
namespace CMF_ISA {

template <class W>
class WinogradWorker {
 public:
  static constexpr int kV = kLanes<float>;
  static constexpr int kM = W::kOutputs;
  static constexpr int kF = W::kFrequencies;

  // `shared_v`: V of all bands, for the threads to transform together; or null: each has a band's.
  WinogradWorker(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                 const WinogradChannels& channels, const WinogradBands& bands, TileStore store,
                 float* shared_v)
      : p_(problem),
        t_(tensors),
        channels_(channels),
        bands_(bands),
        parts_(winograd_parts(problem)),
        store_(store),
        shared_v_(shared_v),
        track_(tensors.index != nullptr),
        source_(problem, channels, static_cast<const float*>(tensors.x)),
        output_(problem, tensors, store),
        epilogue_(problem.pool, kWinogradColumns, bands.most_rows()),
        columns_(store == TileStore::kOutput ? problem.pool.width : problem.pool.out_width),
        tile_size_(store == TileStore::kOutput ? kM : kM / 2),
        segment_rows_(most_tile_rows(bands) * tile_size_) {}

  // Floats of V of a band.
  static int64_t data_floats(const WinogradChannels& channels, const WinogradBands& bands) {
    const int64_t tiles = most_tiles(bands);
    return kF * (channels.data_step(tiles) + kV * (tiles / kTileBlock + 1));
  }

  bool prepare(int64_t k_blocks) {
    const int64_t columns =
        (bands_.tiles_across() * kM + parts_.width * W::kTaps - 1) * p_.stride_width;
    const int64_t tiles = most_tiles(bands_);
    const int64_t planes = bands_.most_carry() > 0 ? k_blocks : least(kChannelBlocks, k_blocks);
    return source_.prepare(FrameSize{frame_rows(most_tile_rows(bands_)), columns}) &&
           epilogue_.prepare() && (shared_v_ || own_v_.allocate(data_floats(channels_, bands_))) &&
           (t_.prepared ? m_.allocate(kChannelBlocks * product_size())
                        : m_.allocate(divide_up(tiles, kMostTileBlock) * product_size()) &&
                              taps_.allocate(weight_tap_floats(p_, channels_)) &&
                              u_.allocate(kF * part_step(kWinogradColumns))) &&
           (output_.straight() || scratch_.allocate(planes * plane_size())) &&
           tiles_.allocate(tiles) && (!track_ || codes_.allocate(planes * plane_size()));
  }

  // V of channel blocks c_first .. c_last - 1 of a band, where it is shared.
  void transform_shared(int64_t band, int64_t c_first, int64_t c_last) {
    start(band);
    transform(c_first, c_last);
  }

  // Output channel blocks k_first .. k_last - 1 of a band; band `next` comes after it.
  void run(int64_t band, int64_t k_first, int64_t k_last, int64_t next) {
    const bool follows = !shared_v_ && band_ >= 0 && band == band_ + 1 && k_first == k_first_;
    // rows that the band before left; else its last tiles are computed again
    carried_ = follows && bands_.segment(band, 0).n == bands_.segment(band_, 0).n;
    k_first_ = k_first;
    start(band);
    if (!shared_v_) transform(0, channels_.count());
    plan_prefetch(next, k_last - k_first);
    if (!t_.prepared) {
      for (int64_t k = k_first; k < k_last; ++k) run_block(k);
      return;
    }
    for (int64_t group = k_first; group < k_last; group += kChannelBlocks) {
      const int64_t group_last = least(group + kChannelBlocks, k_last);
      for (int64_t block = 0; block < blocks_.count(); ++block) {
        multiply(group, group_last, block);
        for (int64_t k = group; k < group_last; ++k) {
          store_tiles(k, block, m_.data + (k - group) * product_size());
        }
      }
      for (int64_t k = group; k < group_last; ++k) {
        for (int64_t i = 0; i < bands_.segments(band); ++i) finish(i, k);
      }
    }
  }

 private:
  struct Tile : TilePlace {  // of z
    int64_t rows;            // of its outputs (or windows) that count
    int64_t columns;
    int64_t segment;
    int64_t target;  // the pixel of its first, in y or in the scratch
    float* v = nullptr;
    int64_t v_step = 0;  // floats from a channel block to the next
    int64_t frequency_step = 0;
  };

  void start(int64_t band) {
    band_ = band;
    v_ = shared_v_ ? shared_v_ + band * data_floats(channels_, bands_) : own_v_.data;
    list_tiles();
  }

  // One block of output channels, whose weights nobody prepared, by all tiles.
  void run_block(int64_t k) {
    const float* w = static_cast<const float*>(t_.w);
    const float* scale = static_cast<const float*>(t_.w_scale);
    const FilterLayout layout(p_, t_.w_channels_last);
    for (int first = 0; first < channels_.count(); first += kSummedBlocks) {
      const int last = static_cast<int>(least(first + kSummedBlocks, channels_.count()));
      transform_weights<W>(p_, channels_, layout, w, scale,
                           WeightPart{k * kWinogradColumns, first, last}, taps_.data, u_.data,
                           part_step(vectors_of(k) * kV));
      for (int64_t block = 0; block < blocks_.count(); ++block)
        multiply_part(k, first, last, block);
    }
    for (int64_t block = 0; block < blocks_.count(); ++block) {
      store_tiles(k, block, m_.data + block * product_size());
    }
    for (int64_t i = 0; i < bands_.segments(band_); ++i) finish(i, k);
  }

  // V of a block of tiles.
  float* block_data(int64_t block) const {
    return v_ + kF * (blocks_.first(block) * channels_.count() + block) * kV;
  }

  // A segment with what it has to compute again.
  Segment segment(int64_t i) const {
    Segment s = bands_.segment(band_, i);
    if (!carried_ && s.carry > 0) {
      s.tile_first -= (s.carry + kM - 1) / kM;
      s.carry = 0;
    }
    return s;
  }

  void list_tiles() {
    tile_count_ = 0;
    for (int64_t i = 0; i < bands_.segments(band_); ++i) {
      const Segment s = segment(i);
      for (int64_t row = s.tile_first; row < s.tile_last; ++row) {
        const int64_t target =
            output_.straight() ? s.n * p_.pool.out_height + row * tile_size_
                               : i * segment_rows_ + s.carry + (row - s.tile_first) * tile_size_;
        const int64_t height = store_ == TileStore::kOutput ? p_.pool.height : p_.pool.out_height;
        const int64_t rows = least(height - row * tile_size_, tile_size_);
        for (int64_t column = 0; column < bands_.tiles_across(); ++column) {
          const int64_t first = column * tile_size_;
          tiles_.data[tile_count_++] =
              Tile{TilePlace{s.n, row * kM, column * kM}, rows, least(columns_ - first, tile_size_),
                   i, target * columns_ + first};
        }
      }
    }
    const int64_t together = bands_.count() > 1 ? kTileBlock : kMostTileBlock;
    blocks_ = EvenParts(tile_count_, divide_up(tile_count_, together));
    for (int64_t block = 0; block < blocks_.count(); ++block) {
      const GemmParts parts(blocks_.size(block));
      for (int64_t part = 0; part < parts.count(); ++part) {
        for (int row = 0; row < parts.rows(part); ++row) {
          Tile& tile = tiles_.data[blocks_.first(block) + parts.first(part) + row];
          tile.v = block_data(block) + (parts.first(part) * channels_.count() + row) * kV;
          tile.v_step = parts.rows(part) * kV;
          tile.frequency_step = channels_.data_step(parts.size());
        }
      }
    }
  }

  // Rows of x that rows of tiles see.
  int64_t frame_rows(int64_t tile_rows) const {
    return (tile_rows * kM + parts_.height * W::kTaps - 1) * p_.stride_height;
  }

  void plan_prefetch(int64_t next, int64_t k_blocks) {
    prefetch_ = WinogradPrefetch();
    if (next == band_) return;
    const Segment s = bands_.segment(next, 0);
    const Segment last = bands_.segment(next, bands_.segments(next) - 1);
    const int64_t first_row = s.tile_first * kM * p_.stride_height - p_.pad_height;
    const int64_t last_row = last.tile_last * kM * p_.stride_height + p_.kernel_height;
    prefetch_ =
        WinogradPrefetch(p_, static_cast<const float*>(t_.x), s.n, last.n, first_row, last_row,
                         divide_up(k_blocks, kChannelBlocks) * blocks_.count() * kF);
  }

  // V of some channel blocks of all the band's tiles: a block of tiles after another.
  void transform(int64_t c_first, int64_t c_last) {
    if (!source_.framed()) {
      for (int64_t i = 0; i < tile_count_; ++i) transform_tile(tiles_.data[i], c_first, c_last);
      return;
    }
    int64_t tile_first = 0;  // of the segment
    for (int64_t s = 0; s < bands_.segments(band_); ++s) {
      int64_t tile_last = tile_first;
      while (tile_last < tile_count_ && tiles_.data[tile_last].segment == s) ++tile_last;
      const Segment segment = this->segment(s);
      const int64_t first = segment.tile_first * kM * p_.stride_height - p_.pad_height;
      const int64_t rows = frame_rows(segment.tile_last - segment.tile_first);
      for (int64_t c = c_first; c < c_last;) {
        source_.fill(segment.n, first, rows, channels_[static_cast<int>(c)].first);
        const int64_t begin = c;
        // the blocks that read this frame: the phases of its channels, or all of a merged pixel
        while (c < c_last && (channels_.merged() || channels_[static_cast<int>(c)].first ==
                                                        channels_[static_cast<int>(begin)].first)) {
          ++c;
        }
        for (int64_t i = tile_first; i < tile_last; ++i) transform_tile(tiles_.data[i], begin, c);
      }
      tile_first = tile_last;
    }
  }

  void transform_tile(const Tile& tile, int64_t c_first, int64_t c_last) {
    for (int64_t c = c_first; c < c_last; ++c) {
      source_.transform<W>(tile.n, tile.row, tile.column, channels_[static_cast<int>(c)],
                           tile.v + c * tile.v_step, tile.frequency_step);
    }
  }

  int vectors_of(int64_t k) const { return filter_vectors(p_, k * kWinogradColumns); }
  const float* weights_of(int64_t k, int f) const {
    return static_cast<const float*>(t_.prepared) +
           k * kF * channels_.weight_step(kWinogradColumns) +
           f * channels_.weight_step(vectors_of(k) * kV);
  }

  // One block of tiles by blocks of output channels k_first .. k_last - 1.
  void multiply(int64_t k_first, int64_t k_last, int64_t block) {
    const int64_t size = blocks_.size(block);
    const GemmParts parts(size);
    for (int f = 0; f < kF; ++f) {
      const float* v = block_data(block) + f * channels_.data_step(size);
      for (int64_t k = k_first; k < k_last; ++k) {
        const GemmBlocks blocks =
            channels_.at(f / W::kAlpha == W::kAlpha - 1, f % W::kAlpha == W::kAlpha - 1);
        const int vectors = vectors_of(k);
        const bool more = k + 1 < k_last;
        const float* next = weights_of(more ? k + 1 : k_first, more ? f : f + 1);
        float* m = m_.data + (k - k_first) * product_size() + f * size * vectors * kV;
        gemm_rows(GemmRows{v, channels_.count(), true}, parts, weights_of(k, f), vectors, next,
                  channels_.count() * kV * kV, blocks, m);
      }
      prefetch_.step();
    }
  }

  // One block of tiles by channel blocks c_first .. c_last - 1 of `u_`, and output channel block k.
  void multiply_part(int64_t k, int c_first, int c_last, int64_t block) {
    const int64_t size = blocks_.size(block);
    const int vectors = vectors_of(k);
    const int64_t columns = vectors * kV;
    const GemmParts parts(size);
    for (int f = 0; f < kF; ++f) {
      const GemmBlocks blocks = channels_.at(f / W::kAlpha == W::kAlpha - 1,
                                             f % W::kAlpha == W::kAlpha - 1, c_first, c_last);
      const float* v = block_data(block) + f * channels_.data_step(size);
      const float* u = u_.data + f * part_step(columns) - int64_t(c_first) * kV * columns;
      float* m = m_.data + block * product_size() + f * size * columns;
      // what is next lies in the cache
      gemm_rows(GemmRows{v, channels_.count(), true}, parts, u, vectors, u, 0, blocks, m);
    }
  }

  // The products of one block of tiles and one of output channels, on their way out.
  void store_tiles(int64_t k, int64_t block, const float* m) {
    const int64_t first = blocks_.first(block);
    const int64_t size = blocks_.size(block);
    const int64_t columns = vectors_of(k) * kV;
    const int64_t channel = k * kWinogradColumns, pixel = output_.pixel();
    float* values =
        output_.straight() ? static_cast<float*>(t_.y) + channel : scratch_.data + plane(k);
    uint8_t* codes = track_ ? codes_.data + plane(k) : nullptr;
    for (int64_t i = 0; i < size; ++i) {
      const Tile& tile = tiles_.data[first + i];
      for (int lane = 0; lane < columns; lane += kV) {
        const int64_t offset = tile.target * pixel + lane;
        output_.run(m + i * columns + lane, size * columns, tile, channel + lane,
                    TileTarget{values + offset, codes ? codes + offset : nullptr, columns_ * pixel,
                               pixel, tile.rows, tile.columns});
      }
    }
  }

  // Block k of output channels in segment i.
  void finish(int64_t i, int64_t k) {
    if (output_.straight()) return output_.fence();
    const Segment s = segment(i);
    const int64_t channel = k * kWinogradColumns;
    const int count = static_cast<int>(least(p_.pool.channels - channel, kWinogradColumns));
    const Band band = {s.n, s.p_first, s.p_last, channel, count};
    const int64_t row = columns_ * kWinogradColumns;
    const int64_t offset = plane(k) + i * segment_rows_ * row;
    float* values = scratch_.data + offset;
    const uint8_t* codes = track_ ? codes_.data + offset : nullptr;
    if (output_.activates()) {
      epilogue_.store(values, codes, band, t_);
      return;
    }
    if (store_ != TileStore::kOutput) {
      epilogue_.finish(values, codes, band, t_);
      return;
    }
    epilogue_.pool(values, s.tile_first * kM - s.carry, band, t_);
    if (bands_.most_carry() == 0 || s.tile_last * kM >= p_.pool.height) return;
    const int64_t carry = bands_.segment(band_ + 1, 0).carry;
    const int64_t rows = s.carry + (s.tile_last - s.tile_first) * kM;
    memmove(values, values + (rows - carry) * row,
            static_cast<size_t>(carry * row) * sizeof(float));
  }

  // Floats from a frequency of `u_` to the next: a line more than they take, as in weight_step.
  int64_t part_step(int64_t columns) const {
    return (least(kSummedBlocks, channels_.count()) * kV + 1) * columns;
  }
  // Floats of a block of tiles' products with one block of output channels.
  int64_t product_size() const { return int64_t(kF) * kMostTileBlock * kWinogradColumns; }
  // Floats of the scratch that one block of output channels needs.
  int64_t plane_size() const {
    return bands_.most_segments() * segment_rows_ * columns_ * kWinogradColumns;
  }
  // Where block k of output channels has its scratch: until the next band, if that carries on.
  int64_t plane(int64_t k) const {
    const int64_t i = k - k_first_;
    return (bands_.most_carry() > 0 ? i : i % kChannelBlocks) * plane_size();
  }
  static int64_t most_tile_rows(const WinogradBands& bands) {
    return bands.most_tile_rows() + (bands.most_carry() + kM - 1) / kM;
  }
  static int64_t most_tiles(const WinogradBands& bands) {
    return bands.most_segments() * most_tile_rows(bands) * bands.tiles_across();
  }

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const WinogradChannels& channels_;
  const WinogradBands& bands_;
  const WinogradParts parts_;
  const TileStore store_;
  float* const shared_v_;
  const bool track_;
  WinogradSource source_;
  WinogradOutput<W> output_;
  BandEpilogue epilogue_;
  const int64_t columns_;       // of the scratch
  const int64_t tile_size_;     // outputs or windows of a tile along one axis
  const int64_t segment_rows_;  // of the scratch
  int64_t band_ = -1;
  int64_t k_first_ = 0;
  bool carried_ = false;
  WinogradPrefetch prefetch_;
  int64_t tile_count_ = 0;
  EvenParts blocks_{0, 1};  // of tiles
  Scratch<Tile> tiles_;
  Scratch<float> own_v_;
  float* v_ = nullptr;  // of the band
  Scratch<float> m_;
  Scratch<float> u_;  // where nobody prepared weights: those of kSummedBlocks channel blocks
  Scratch<float> taps_;
  Scratch<float> scratch_;  // [segment][rows][columns][kWinogradColumns]
  Scratch<uint8_t> codes_;  // as scratch_
};

}  // namespace CMF_ISA
}  // namespace cmf

// y = pool(act(x * w + bias)) with m·m outputs of a filter from alpha·alpha multiplications.
//
// A band of tiles is transformed to V [frequency][channel block][tile][lane]; then, for a block of
// output channels and a block of tiles at a time, one product a frequency gives M
// [frequency][tile][column], whose inverse transform, windows and bias stay in registers. Only what
// is left of the windows is stored.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/band_epilogue.h"
#include "cpu/scratch.h"
#include "cpu/winograd.h"
#include "cpu/winograd_bands.h"
#include "cpu/winograd_direct.h"
#include "cpu/winograd_prefetch.h"
#include "cpu/winograd_source.h"
#include "cpu/winograd_tile.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;
constexpr int kTileBlock = 2 * kGemmRows;  // tiles whose products lie in cache together

TileStore tile_store(const ActPool2dProblem& p, bool track) {
  const bool pairs = p.pool_height == 2 && p.pool_width == 2 && p.pool_stride_height == 2 &&
                     p.pool_stride_width == 2 && p.pool_pad_height == 0 && p.pool_pad_width == 0 &&
                     2 * p.out_height <= p.height && 2 * p.out_width <= p.width;
  const Activation activation = static_cast<Activation>(p.activation);
  if (!pairs) return TileStore::kOutput;
  if (p.pool == Pool::kMax && p.monotone) return TileStore::kMax;
  const bool simple = activation == Activation::kIdentity || activation == Activation::kRelu ||
                      activation == Activation::kLeakyRelu;
  // an average's mask is BandEpilogue's
  return p.pool == Pool::kAvg && simple && !track ? TileStore::kAverage : TileStore::kOutput;
}

template <class W>
class Worker {
 public:
  static constexpr int kM = W::kOutputs;
  static constexpr int kF = W::kFrequencies;

  Worker(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
         const WinogradChannels& channels, const WinogradBands& bands, TileStore store)
      : p_(problem),
        t_(tensors),
        channels_(channels),
        bands_(bands),
        store_(store),
        track_(tensors.index != nullptr),
        source_(problem, channels, static_cast<const float*>(tensors.x)),
        epilogue_(problem.pool, kWinogradColumns, bands.most_rows()),
        columns_(store == TileStore::kOutput ? problem.pool.width : problem.pool.out_width),
        tile_size_(store == TileStore::kOutput ? kM : kM / 2),
        segment_rows_(bands.most_tile_rows() * tile_size_) {}

  bool prepare() {
    const int64_t rows = (bands_.most_tile_rows() * kM + W::kTaps - 1) * p_.stride_height;
    const int64_t columns = (bands_.tiles_across() * kM + W::kTaps - 1) * p_.stride_width;
    const int64_t pixels = bands_.most_segments() * segment_rows_ * columns_;
    return source_.prepare(FrameSize{rows, columns}) && epilogue_.prepare() &&
           v_.allocate(kF * channels_.data_step(bands_.most_tiles()) +
                       kF * kV * (bands_.most_tiles() / kTileBlock + 1)) &&
           m_.allocate(int64_t(kF) * kTileBlock * kWinogradColumns) &&
           scratch_.allocate(pixels * kWinogradColumns) && tiles_.allocate(bands_.most_tiles()) &&
           (!track_ || codes_.allocate(pixels * kWinogradColumns));
  }

  // Output channel blocks k_first .. k_last - 1 of a band; band `next` comes after it.
  void run(int64_t band, int64_t k_first, int64_t k_last, int64_t next) {
    if (band != transformed_) {
      list_tiles(band);
      transform();
      transformed_ = band;
    }
    prefetch_ = WinogradPrefetch();
    if (next != band && next < bands_.count()) {
      const Segment s = bands_.segment(next, 0);
      const Segment last = bands_.segment(next, bands_.segments(next) - 1);
      const int64_t first_row = s.tile_first * kM * p_.stride_height - p_.pad_height;
      const int64_t last_row = last.tile_last * kM * p_.stride_height + p_.kernel_height;
      prefetch_ = WinogradPrefetch(p_, static_cast<const float*>(t_.x), s.n, last.n, first_row,
                                   last_row, (k_last - k_first) * tile_blocks_ * kF);
    }
    for (int64_t k = k_first; k < k_last; ++k) {
      for (int64_t block = 0; block < tile_blocks_; ++block) multiply(k, block);
      const int64_t channel = k * kWinogradColumns;
      const int64_t left = p_.pool.channels - channel;
      const int count = left < kWinogradColumns ? static_cast<int>(left) : kWinogradColumns;
      for (int64_t i = 0; i < bands_.segments(band); ++i)
        finish(bands_.segment(band, i), i, channel, count);
    }
  }

 private:
  struct Tile {
    int64_t n;
    int64_t row;     // of z
    int64_t column;  // of z
    int64_t rows;    // of its outputs (or windows) that count
    int64_t segment;
    int64_t target;  // the scratch pixel of its first
  };

  int64_t block_first(int64_t block) const { return tile_count_ * block / tile_blocks_; }

  // V of a block of tiles.
  float* block_data(int64_t block) const {
    return v_.data + kF * (block_first(block) * channels_.count() + block) * kV;
  }

  void list_tiles(int64_t band) {
    band_ = band;
    tile_count_ = 0;
    for (int64_t i = 0; i < bands_.segments(band); ++i) {
      const Segment s = bands_.segment(band, i);
      for (int64_t row = s.tile_first; row < s.tile_last; ++row) {
        for (int64_t column = 0; column < bands_.tiles_across(); ++column) {
          const int64_t first = (row - s.tile_first) * tile_size_;
          const int64_t limit = store_ == TileStore::kOutput
                                    ? p_.pool.height - row * kM
                                    : p_.pool.out_height - row * tile_size_;
          tiles_.data[tile_count_++] =
              Tile{s.n,         row * kM,
                   column * kM, limit < tile_size_ ? limit : tile_size_,
                   i,           (i * segment_rows_ + first) * columns_ + column * tile_size_};
        }
      }
    }
    tile_blocks_ = (tile_count_ + kTileBlock - 1) / kTileBlock;
  }

  // V of all the band's tiles: a block of tiles after another.
  void transform() {
    const int64_t count = channels_.count();
    if (!source_.framed()) {
      for (int64_t block = 0; block < tile_blocks_; ++block) {
        for (int64_t i = block_first(block); i < block_first(block + 1); ++i) {
          for (int64_t c = 0; c < count; ++c) transform_tile(block, i, c);
        }
      }
      return;
    }
    for (int64_t s = 0; s < bands_.segments(band_); ++s) {
      const Segment segment = bands_.segment(band_, s);
      const int64_t first = segment.tile_first * kM * p_.stride_height - p_.pad_height;
      const int64_t rows =
          ((segment.tile_last - segment.tile_first) * kM + W::kTaps - 1) * p_.stride_height;
      for (int64_t c = 0; c < count;) {
        source_.fill(segment.n, first, rows, channels_[static_cast<int>(c)].first);
        const int64_t begin = c;
        // the blocks that read this frame: the phases of its channels, or all of a merged pixel
        while (c < count && (channels_.merged() || channels_[static_cast<int>(c)].first ==
                                                       channels_[static_cast<int>(begin)].first)) {
          ++c;
        }
        for (int64_t block = 0; block < tile_blocks_; ++block) {
          for (int64_t i = block_first(block); i < block_first(block + 1); ++i) {
            if (tiles_.data[i].segment != s) continue;
            for (int64_t b = begin; b < c; ++b) transform_tile(block, i, b);
          }
        }
      }
    }
  }

  void transform_tile(int64_t block, int64_t i, int64_t c) {
    const Tile& tile = tiles_.data[i];
    const int64_t first = block_first(block);
    const int64_t size = block_first(block + 1) - first;
    float* v = block_data(block) + (c * size + i - first) * kV;
    source_.transform<W>(tile.n, tile.row, tile.column, channels_[static_cast<int>(c)], v,
                         channels_.data_step(size));
  }

  // One block of tiles by one block of output channels.
  void multiply(int64_t k, int64_t block) {
    const int64_t first = block_first(block);
    const int64_t size = block_first(block + 1) - first;
    const int vectors = p_.pool.channels - k * kWinogradColumns > kV ? 2 : 1;
    const int64_t columns = vectors * kV;
    const float* v = block_data(block);
    const float* u =
        static_cast<const float*>(t_.prepared) + k * kF * channels_.weight_step(kWinogradColumns);
    const int64_t parts = (size + kGemmRows - 1) / kGemmRows;
    for (int f = 0; f < kF; ++f) {
      const GemmBlocks blocks =
          channels_.at(f / W::kAlpha == W::kAlpha - 1, f % W::kAlpha == W::kAlpha - 1);
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t row = size * part / parts;
        const int rows = static_cast<int>(size * (part + 1) / parts - row);
        gemm_tile_for(rows, vectors)(v + f * channels_.data_step(size) + row * kV, size * kV,
                                     u + f * channels_.weight_step(columns), blocks,
                                     m_.data + (f * size + row) * columns);
      }
      prefetch_.step();
    }
    for (int64_t i = 0; i < size; ++i) {
      const Tile& tile = tiles_.data[first + i];
      for (int vector = 0; vector < vectors; ++vector) {
        output(tile, m_.data + i * columns + vector * kV, size * columns,
               k * kWinogradColumns + vector * kV, vector * kV);
      }
    }
  }

  // The outputs of one tile for kV channels from `channel` on, to lane `lane` of the scratch.
  void output(const Tile& tile, const float* m, int64_t step, int64_t channel, int lane) {
    V z[kM][kM];
    transform_output_tile<W>(m, step, z);
    V sum = z[0][0];
    CMF_UNROLL
    for (int i = 1; i < kM * kM; ++i) sum += z[i / kM][i % kM];
    // infinity and NaN anywhere in the tile spread over all of it: such tiles are summed tap by tap
    if (__builtin_expect(any_nan(sum - sum), 0)) {
      direct_tile<kM>(p_, t_, tile.n, tile.row, tile.column, channel, z);
    }
    const int64_t left = p_.pool.channels - channel;
    const V bias = t_.bias ? load_lanes<float>(static_cast<const float*>(t_.bias) + channel,
                                               left < kV ? static_cast<int>(left) : kV)
                           : broadcast<float>(-0.0f);
    const int64_t offset = tile.target * kWinogradColumns + lane;
    const int64_t row_step = columns_ * kWinogradColumns;
    float* target = scratch_.data + offset;
    const int64_t column = tile.column / kM * tile_size_;
    const int64_t columns = columns_ - column < tile_size_ ? columns_ - column : tile_size_;
    const bool whole = columns == tile_size_ && tile.rows == tile_size_;
    if (store_ == TileStore::kOutput) {
      CMF_UNROLL
      for (int i = 0; i < kM; ++i) {
        CMF_UNROLL
        for (int j = 0; j < kM; ++j) {
          if (whole || (i < tile.rows && j < columns)) {
            store<float>(target + i * row_step + j * kWinogradColumns, z[i][j] + bias);
          }
        }
      }
    } else if (store_ == TileStore::kMax) {
      track_ ? windows<MaxReducer, true>(z, bias, tile.rows, columns, target, row_step,
                                         codes_.data + offset)
             : windows<MaxReducer, false>(z, bias, tile.rows, columns, target, row_step, nullptr);
    } else {
      activate_all(z, bias);
      windows<SumReducer, false>(z, broadcast<float>(0.0f), tile.rows, columns, target, row_step,
                                 nullptr);
    }
  }

  void activate_all(V (&z)[kM][kM], V bias) {
    const float param = static_cast<float>(p_.pool.activation_param);
    const Activation activation = static_cast<Activation>(p_.pool.activation);
    CMF_UNROLL
    for (int i = 0; i < kM * kM; ++i) {
      V& value = z[i / kM][i % kM];
      value += bias;
      if (activation == Activation::kRelu) {
        value = activate<Activation::kRelu>(value, param);
      } else if (activation == Activation::kLeakyRelu) {
        value = activate<Activation::kLeakyRelu>(value, param);
      }
    }
  }

  template <template <class, class, class, bool> class Reducer, bool kTrack>
  CMF_HOST_DEVICE void windows(const V (&z)[kM][kM], V bias, int64_t rows, int64_t columns,
                               float* target, int64_t row_step, uint8_t* codes) {
    const MaskRule<float> rule = {0, false};
    CMF_UNROLL
    for (int i = 0; i < kM / 2; ++i) {
      CMF_UNROLL
      for (int j = 0; j < kM / 2; ++j) {
        Reducer<float, V, Mask<float>, kTrack> reducer(rule);
        reducer.begin(z[2 * i][2 * j], 0);
        reducer.add(z[2 * i][2 * j + 1], 1);
        reducer.add(z[2 * i + 1][2 * j], 2);
        reducer.add(z[2 * i + 1][2 * j + 1], 3);
        if (i >= rows || j >= columns) continue;
        const int64_t at = i * row_step + j * kWinogradColumns;
        const V value =
            store_ == TileStore::kAverage ? reducer.value * 0.25f : reducer.value + bias;
        store<float>(target + at, value);
        if (kTrack) store_bytes<float>(codes + at, reducer.code);
      }
    }
  }

  void finish(const Segment& s, int64_t i, int64_t channel, int count) {
    const Band band = {s.n, s.p_first, s.p_last, channel, count};
    const int64_t offset = i * segment_rows_ * columns_ * kWinogradColumns;
    float* values = scratch_.data + offset;
    if (store_ == TileStore::kOutput) {
      epilogue_.pool(values, s.tile_first * kM, band, t_);
    } else {
      epilogue_.finish(values, track_ ? codes_.data + offset : nullptr, band, t_);
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const WinogradChannels& channels_;
  const WinogradBands& bands_;
  const TileStore store_;
  const bool track_;
  WinogradSource source_;
  BandEpilogue epilogue_;
  const int64_t columns_;       // of the scratch
  const int64_t tile_size_;     // outputs or windows of a tile along one axis
  const int64_t segment_rows_;  // of the scratch
  int64_t band_ = -1;
  WinogradPrefetch prefetch_;
  int64_t transformed_ = -1;  // the band that V holds
  int64_t tile_count_ = 0;
  int64_t tile_blocks_ = 0;
  Scratch<Tile> tiles_;
  Scratch<float> v_;
  Scratch<float> m_;
  Scratch<float> scratch_;  // [segment][rows][columns][kWinogradColumns]
  Scratch<uint8_t> codes_;  // as scratch_
};

template <class W>
bool forward(const ConvActPool2dProblem& p, const ConvForwardTensors& tensors, int threads) {
  WinogradChannels channels;
  if (!channels.prepare(p, W::kTaps)) return false;
  const TileStore store = tile_store(p.pool, tensors.index != nullptr);
  const WinogradBands bands(p.pool, W::kOutputs, store,
                            int64_t(channels.count()) * kV * W::kFrequencies, threads);
  const int64_t k_blocks = (p.pool.channels + kWinogradColumns - 1) / kWinogradColumns;
  // few bands are shared by several threads, each with output channels of its own
  int64_t shares = bands.count() < threads ? (threads + bands.count() - 1) / bands.count() : 1;
  if (shares > k_blocks) shares = k_blocks;
  const int64_t items = bands.count() * shares;
  const int parts = items < threads ? static_cast<int>(items) : threads;
  bool success = true;
#if defined(_OPENMP)
#pragma omp parallel num_threads(parts) if (parts > 1)
#endif
  {
    Worker<W> worker(p, tensors, channels, bands, store);
    const bool ready = worker.prepare();
    if (!ready) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      success = false;
    }
    // runs of consecutive items: the next band's rows overlap with this one's
#if defined(_OPENMP)
    const int64_t part = omp_get_thread_num();
    const int64_t team = omp_get_num_threads();
#else
    const int64_t part = 0;
    const int64_t team = 1;
#endif
    const int64_t last = items * (part + 1) / team;
    for (int64_t item = items * part / team; ready && item < last; ++item) {
      const int64_t share = item % shares;
      const int64_t next = item + 1 < last ? (item + 1) / shares : item / shares;
      worker.run(item / shares, k_blocks * share / shares, k_blocks * (share + 1) / shares, next);
    }
  }
  return success;
}

}  // namespace

const char* winograd_refusal(const ConvActPool2dProblem& p, bool backward) {
  if (static_cast<DType>(p.pool.dtype) != DType::kFloat32) return "computes in float32 alone";
  if (p.groups != 1) return "takes groups 1 alone";
  if (p.dilation_height != 1 || p.dilation_width != 1) return "takes dilation 1 alone";
  const int taps = winograd_taps(p);
  if (taps < 2 || taps > 5) return "takes filters of 2 to 5 taps a stride alone";
  if (p.pool.index_itemsize > 1) return "takes windows of at most 255 elements";
  if (!backward) return nullptr;
  if (p.pool.saved == Saved::kInput) {
    return "has no backward of an activation that needs the convolution's output itself";
  }
  if (p.pad_height >= p.kernel_height || p.pad_width >= p.kernel_width) {
    return "has no backward of a padding as large as the filter";
  }
  return nullptr;
}

bool winograd_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& tensors,
                      int threads) {
  switch (winograd_taps(p)) {
    case 2:
      return forward<Winograd<4, 2>>(p, tensors, threads);
    case 3:
      return forward<Winograd<4, 3>>(p, tensors, threads);
    case 4:
      return forward<Winograd<4, 4>>(p, tensors, threads);
    default:
      return forward<Winograd<4, 5>>(p, tensors, threads);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

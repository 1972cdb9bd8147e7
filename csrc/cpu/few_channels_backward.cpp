// Backward: dw and dbias from the pooled gradient. The gradient of the convolution's output exists
// for a few rows at a time, in cache.
//
// Sums are taken over pieces of rows, from zero; pieces are added to one of a fixed number of
// partial gradients, and those in double: the same bits for any number of threads.
#include <string.h>

#include "cpu/expand_pooled.h"
#include "cpu/few_channels.h"
#include "cpu/few_channels_frame.h"
#include "cpu/few_channels_input_gradient.h"
#include "cpu/few_channels_pooled.h"
#include "cpu/few_channels_tile.h"
#include "cpu/integers.h"
#include "cpu/partial_biases.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kMostPartials = 32;
constexpr int64_t kDenseFloats = 16 * 1024;  // of a piece, about
// A parallel region costs about as much as this many multiplications take one thread.
constexpr int64_t kProductsPerThread = 1 << 19;

// A piece is some rows of the convolution's output in one image.
struct Pieces {
  int64_t rows;   // of one, but the image's last
  int64_t bands;  // in an image
  int64_t count;
  int64_t partials;
};

Pieces make_pieces(const ActPool2dProblem& p) {
  Pieces pieces;
  const int64_t stride = p.pool_stride_height;
  int64_t row = p.width * stride;  // pixels for a row of windows
#if defined(CMF_SPARSE_TILE)
  if (p.pool == Pool::kMax && pools_by_twos(p)) row = p.out_width;
#endif
  int64_t windows = kDenseFloats / (row * kTileLanes);
  windows = most(1, least(windows, p.out_height));
  const int64_t bands = (p.out_height + windows - 1) / windows;
  windows = (p.out_height + bands - 1) / bands;
  pieces.rows = least(windows * stride, p.height);
  pieces.bands = (p.height + pieces.rows - 1) / pieces.rows;
  pieces.count = p.batch * pieces.bands;
  pieces.partials = least(pieces.count, kMostPartials);
  return pieces;
}

// The pooled rows that reach rows h_first .. h_last - 1.
PoolCover pooled_rows(const ActPool2dProblem& p, int64_t h_first, int64_t h_last) {
  const PoolAxis axis = vertical_axis(p);
  return PoolCover{pool_cover(axis, h_first).first, pool_cover(axis, h_last - 1).last};
}

// The taps in the order of the sums: runs that lie side by side in a framed row, cut to the tile.
class Runs {
 public:
  Runs(const ConvActPool2dProblem& problem, const Frame& frame) : p_(problem), frame_(frame) {
    length_ = p_.kernel_width * (p_.x_channels_last ? p_.in_channels : 1);
    // parts as even as can be: 21 taps as 11 and 10
    parts_ = (length_ + kTileTaps - 1) / kTileTaps;
    part_ = (length_ + parts_ - 1) / parts_;
    rows_ = p_.kernel_height * (p_.x_channels_last ? 1 : p_.in_channels);
  }
  int64_t parts() const { return parts_; }
  int64_t rows() const { return rows_; }
  int64_t first(int64_t part) const { return part * part_; }
  int taps(int64_t part) const { return static_cast<int>(least(part_, length_ - first(part))); }
  // floats from an output's first input to that of a run
  int64_t offset(int64_t row, int64_t part) const {
    const int64_t channels = p_.x_channels_last ? 1 : p_.in_channels;
    return row / channels * frame_.row() + row % channels * frame_.channel() + first(part);
  }
  // which sum belongs to the weight (c, r, s)
  int64_t position(int64_t c, int64_t r, int64_t s) const {
    const int64_t row = p_.x_channels_last ? r : r * p_.in_channels + c;
    const int64_t tap = p_.x_channels_last ? s * p_.in_channels + c : s;
    const int64_t part = tap / part_;
    return first(part) * rows_ + row * taps(part) + tap - first(part);
  }

 private:
  const ConvActPool2dProblem& p_;
  const Frame& frame_;
  int64_t length_;
  int64_t parts_;
  int64_t part_;
  int64_t rows_;
};

class BackwardItem {
 public:
  BackwardItem(const ConvActPool2dProblem& problem, const Pieces& pieces,
               const ConvBackwardTensors& tensors)
      : problem_(problem),
        p_(problem.pool),
        pieces_(pieces),
        t_(tensors),
        frame_(problem, problem.pool.width, !problem.x_channels_last),
        runs_(problem, frame_),
        pooled_(problem.pool, tensors, kTileLanes),
        apart_(problem.pool.pool == Pool::kNone || pools_by_twos(problem.pool)) {
#if defined(CMF_SPARSE_TILE)
    const int64_t column = frame_.column() * problem.stride_width;
    by_windows_ = p_.pool == Pool::kMax && pools_by_twos(p_) && fits_table(runs_.taps(0), column);
#endif
  }
  BackwardItem(const BackwardItem&) = delete;
  BackwardItem& operator=(const BackwardItem&) = delete;

  bool prepare() {
    const int64_t x_rows = (pieces_.rows - 1) * problem_.stride_height + problem_.kernel_height;
    const int64_t floats = pieces_.rows * p_.width * kTileLanes + kTileLanes;
    int64_t pooled = pieces_.rows;
    if (p_.pool != Pool::kNone) {
      const int64_t reach = (pieces_.rows + p_.pool_height) / p_.pool_stride_height + 2;
      pooled = least(reach, p_.out_height);
    }
    return dense_.allocate(floats) && frame_.allocate(x_rows, kLanes<float>) &&
           pooled_.prepare(pooled);
  }

  const Runs& runs() const { return runs_; }

  // Adds a piece's gradients to sums [block][taps][kTileLanes] and bias_sums [K].
  void run(int64_t piece, float* sums, double* bias_sums) {
    const int64_t n = piece / pieces_.bands;
    const int64_t h_first = piece % pieces_.bands * pieces_.rows;
    const int64_t h_last = least(h_first + pieces_.rows, p_.height);
    const PoolCover rows = pooled_rows(p_, h_first, h_last);
    if (rows.first < rows.last) pooled_.stage(n, rows.first, rows.last);
    bool sparse = by_windows_ && rows.first < rows.last;
    if (t_.dw) {
      const int64_t image = problem_.in_channels * problem_.height * problem_.width;
      const int64_t x_rows =
          (h_last - h_first - 1) * problem_.stride_height + problem_.kernel_height;
      frame_.fill(static_cast<const float*>(t_.x) + n * image,
                  h_first * problem_.stride_height - problem_.pad_height, x_rows);
      // 0 times what is not finite is NaN, which the sparse sums leave out
      sparse = sparse && frame_.is_moderate(x_rows);
    }
    const int64_t taps = problem_.in_channels * problem_.kernel_height * problem_.kernel_width;
    for (int64_t k = 0; k < p_.channels; k += kTileLanes) {
      const int count = static_cast<int>(least(p_.channels - k, kTileLanes));
      const int vectors = (count + kLanes<float> - 1) / kLanes<float>;
      Tile tile = {};
      tile.x_row = problem_.stride_height * frame_.row();
      tile.x_pixel = problem_.stride_width * frame_.column();
      tile.sums = sums + k * taps;
      PooledBlock block = {};
      if (rows.first < rows.last) {
        block = pooled_.block(k, count, t_.dbias && apart_ ? bias_sums + k : nullptr);
      }
      if (sparse) {
        select(block, count, vectors, rows, tile);
      } else {
        spread(block, count, vectors, h_first, h_last, rows, tile);
      }
      if (t_.dbias && !block.summed) add_bias(tile, vectors, count, bias_sums + k);
      if (!t_.dw) continue;
#if defined(CMF_SPARSE_TILE)
      if (sparse) {
        vectors == kTileVectors ? multiply<SparseTile, kTileVectors>(tile)
                                : multiply<SparseTile, 1>(tile);
        continue;
      }
#endif
      vectors == kTileVectors ? multiply<DenseTile, kTileVectors>(tile)
                              : multiply<DenseTile, 1>(tile);
    }
  }

 private:
  // A block's dense gradient: its pixels are those of the convolution's output.
  void spread(const PooledBlock& block, int count, int vectors, int64_t h_first, int64_t h_last,
              PoolCover rows, Tile& tile) {
    tile.rows = h_last - h_first;
    tile.columns = p_.width;
    if (p_.pool == Pool::kNone) {
      tile.g = block.g;
      tile.g_pixel = block.g_pixel;
    } else {
      expand(p_, block,
             DenseRows{dense_.data, h_first, h_last, rows.first, rows.last, p_.width * kTileLanes,
                       kTileLanes, vectors, count});
      tile.g = dense_.data;
      tile.g_pixel = kTileLanes;
    }
    tile.g_row = tile.g_pixel * p_.width;
  }

  // A block's pooled gradient: its pixels are the windows.
  void select(const PooledBlock& block, int count, int vectors, PoolCover rows, Tile& tile) {
    tile.rows = rows.last - rows.first;
    tile.columns = p_.out_width;
    tile.g = block.g;
    tile.g_pixel = block.g_pixel;
    tile.g_row = tile.g_pixel * p_.out_width;
    int32_t* selectors = reinterpret_cast<int32_t*>(dense_.data);
    tile.selectors = selectors;
    tile.x_below = tile.x_row;
#if defined(CMF_SPARSE_TILE)
    const int column = static_cast<int>(tile.x_pixel);
    for (int64_t i = 0; i < tile.rows * tile.columns; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v) {
        if (v >= vectors) break;
        const Mask<float> selector = select_position(block_codes(block, i, v, count), column);
        __builtin_memcpy(selectors + i * kTileLanes + v * kLanes<float>, &selector,
                         sizeof selector);
      }
    }
#else
    (void)count;
    (void)vectors;
#endif
    tile.x_row *= 2;
    tile.x_pixel *= 2;
  }

  template <class Kind, int kVectors>
  void multiply(Tile& tile) const {
    for (int64_t part = 0; part < runs_.parts(); ++part) {
      const int taps = runs_.taps(part);
      const int64_t together = tile_runs(taps);
      for (int64_t row = 0; row < runs_.rows(); row += together) {
        const int64_t count = least(together, runs_.rows() - row);
        for (int64_t i = 0; i < count; ++i) {
          tile.x[i] = frame_.data() + runs_.offset(row + i, part);
        }
        run_tile<Kind, kVectors>(static_cast<int>(count), taps, tile);
        tile.sums += count * taps * kTileLanes;
      }
    }
  }

  void add_bias(const Tile& tile, int vectors, int count, double* sums) const {
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int v = 0; v < vectors; ++v) {
        const int k = v * kLanes<float>;
        const float* g = tile.g + row * tile.g_row + k;
        Vec<float> sum = {};
        for (int64_t i = 0; i < tile.columns; ++i) sum += load<float>(g + i * tile.g_pixel);
        add_lanes(sum, count - k, sums + k);
      }
    }
  }

  const ConvActPool2dProblem& problem_;
  const ActPool2dProblem& p_;
  const Pieces& pieces_;
  const ConvBackwardTensors& t_;
  Frame frame_;
  Runs runs_;
  PooledRows pooled_;
  bool by_windows_ = false;  // whether sparse sums can be had
  const bool apart_;         // whether no two pieces share a pooled row
  Scratch<float> dense_;     // dense rows, or selectors
};

// The partial gradients' sums, in double and in order.
void add_partials(const ConvActPool2dProblem& problem, const Runs& runs, int64_t partials,
                  const float* sums, int64_t sums_size, const double* bias_sums,
                  const ConvBackwardTensors& t) {
  const int64_t channels = problem.in_channels, filters = problem.pool.channels;
  const int64_t R = problem.kernel_height, S = problem.kernel_width, taps = channels * R * S;
  for (int64_t k = 0; t.dw && k < filters; k += kTileLanes) {
    float* dw = static_cast<float*>(t.dw) + k * taps;
    const int64_t lanes = least(filters - k, kTileLanes);
    for (int64_t i = 0; i < taps; ++i) {
      const int64_t position = runs.position(i / (R * S), i / S % R, i % S);
      double total[kTileLanes] = {};
      for (int64_t m = 0; m < partials; ++m) {
        const float* source = sums + m * sums_size + (k * taps + position * kTileLanes);
        for (int lane = 0; lane < kTileLanes; ++lane) {
          total[lane] += static_cast<double>(source[lane]);
        }
      }
      for (int64_t j = 0; j < lanes; ++j) dw[j * taps + i] = static_cast<float>(total[j]);
    }
  }
  if (t.dbias) add_partial_biases(bias_sums, partials, filters, static_cast<float*>(t.dbias));
}

}  // namespace

bool few_channels_backward(const ConvActPool2dProblem& problem, const ConvBackwardTensors& t,
                           int threads) {
  if (t.dx && !few_channels_input_gradient(problem, t, threads)) return false;
  if (!t.dw && !t.dbias) return true;
  const ActPool2dProblem& p = problem.pool;
  const int64_t taps = problem.in_channels * problem.kernel_height * problem.kernel_width;
  const int64_t products = p.batch * p.channels * p.height * p.width * taps;
  const Pieces pieces = make_pieces(p);
  const int parts = static_cast<int>(
      most(1, least(least(threads, pieces.partials), products / kProductsPerThread)));
  (void)parts;  // unused where there is no OpenMP
  const int64_t blocks = (p.channels + kTileLanes - 1) / kTileLanes;
  const int64_t sums_size = t.dw ? blocks * taps * kTileLanes : 0;
  const int64_t bias_size = t.dbias ? p.channels : 0;
  Scratch<float> sums;
  Scratch<double> bias_sums;
  if (!sums.allocate(pieces.partials * sums_size) ||
      !bias_sums.allocate(pieces.partials * bias_size)) {
    return false;
  }
  bool success = true;
#if defined(_OPENMP)
#pragma omp parallel num_threads(parts) if (parts > 1)
#endif
  {
    BackwardItem item(problem, pieces, t);
    const bool ready = item.prepare();
    if (!ready) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      success = false;
    }
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
    for (int64_t m = 0; m < pieces.partials; ++m) {
      const int64_t each = pieces.count / pieces.partials, rest = pieces.count % pieces.partials;
      const int64_t first = m * each + least(m, rest);
      const int64_t last = first + each + (m < rest ? 1 : 0);
      memset(sums.data + m * sums_size, 0, static_cast<size_t>(sums_size) * sizeof(float));
      for (int64_t k = 0; k < bias_size; ++k) bias_sums.data[m * bias_size + k] = 0;
      for (int64_t piece = first; ready && piece < last; ++piece) {
        item.run(piece, sums.data + m * sums_size, bias_sums.data + m * bias_size);
      }
    }
  }
  if (success) {
    const Frame frame(problem, p.width, !problem.x_channels_last);
    add_partials(problem, Runs(problem, frame), pieces.partials, sums.data, sums_size,
                 bias_sums.data, t);
  }
  return success;
}

}  // namespace CMF_ISA
}  // namespace cmf

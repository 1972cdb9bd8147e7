// A pixel of dz times the filters is one number a tap and channel; those of a row of taps lie side
// by side in a frame of dx, channels inside. What vectors and registers hold are taps, not
// channels: three channels would leave most of them idle.
#include "cpu/few_channels_input_gradient.h"

#include <string.h>

#include "cpu/gemm_tile.h"
#include "cpu/gradient_frame.h"
#include "cpu/integers.h"
#include "cpu/parts.h"
#include "cpu/scratch.h"
#include "cpu/transposed_epilogue.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;
constexpr int kColumns = kGemmVectors * kV;
constexpr int64_t kGradientFloats = 48 * 1024;  // of dz that a band of dx reads, about
constexpr int64_t kProductsPerThread = 1 << 19;

// The filters: [group of columns][filter][column], a column being a tap and channel [R][S][C].
class Filters {
 public:
  explicit Filters(const ConvActPool2dProblem& p)
      : run(p.kernel_width * p.in_channels),
        columns(p.kernel_height * run),
        groups(divide_up(columns, kColumns)),
        blocks(divide_up(p.pool.channels, kV)),
        p_(p) {}

  // `prepared`: what `fill` gave, or null.
  bool prepare(const float* w, const float* prepared) {
    if (!index_.allocate(2 * blocks)) return false;
    for (int64_t b = 0; b < blocks; ++b) {
      index_.data[b] = static_cast<int32_t>(b);
      index_.data[blocks + b] = static_cast<int32_t>(least(p_.pool.channels - b * kV, kV));
    }
    data_ = prepared;
    if (prepared) return true;
    if (!memory_.allocate(size())) return false;
    fill(w, memory_.data);
    data_ = memory_.data;
    return true;
  }

  int64_t size() const { return groups * blocks * kV * kColumns; }

  void fill(const float* w, float* data) const {
    const int64_t area = p_.kernel_height * p_.kernel_width;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t width = vectors(g) * kV;
      for (int64_t k = 0; k < p_.pool.channels; ++k) {
        float* target = data + g * blocks * kV * kColumns + k * width;
        for (int64_t i = 0; i < width; ++i) {
          const int64_t column = g * kColumns + i;
          const int64_t c = column % p_.in_channels, tap = column / p_.in_channels;
          target[i] = column < columns ? w[(k * p_.in_channels + c) * area + tap] : 0.0f;
        }
      }
    }
  }

  int vectors(int64_t group) const { return columns - group * kColumns > kV ? 2 : 1; }
  const float* at(int64_t group) const { return data_ + group * blocks * kV * kColumns; }
  GemmBlocks sums() const {
    return GemmBlocks{static_cast<int>(blocks), index_.data, index_.data + blocks};
  }

  const int64_t run;      // columns of a row of taps
  const int64_t columns;  // of all
  const int64_t groups;
  const int64_t blocks;  // vectors of filters

 private:
  const ConvActPool2dProblem& p_;
  const float* data_ = nullptr;
  Scratch<float> memory_;
  Scratch<int32_t> index_;
};

// dx is cut into bands of rows by the problem alone: the same sums for any number of threads.
struct Bands {
  explicit Bands(const ConvActPool2dProblem& p) {
    const int64_t row = p.pool.width * round_up(p.pool.channels, kV);
    const int64_t z_rows = most(1, kGradientFloats / row);
    rows = least(z_rows * p.stride_height, p.height);
    count = divide_up(p.height, rows);
    rows = divide_up(p.height, count);
    count = divide_up(p.height, rows);
  }
  int64_t rows;   // of dx
  int64_t count;  // in an image
};

class Worker {
 public:
  Worker(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, const Filters& filters,
         const Bands& bands)
      : p_(p),
        t_(t),
        filters_(filters),
        bands_(bands),
        z_rows_(least((bands.rows + p.kernel_height - 2) / p.stride_height + 1, p.pool.height)),
        row_(((p.pool.width - 1) * p.stride_width + p.kernel_width) * p.in_channels),
        frame_(p, t, z_rows_, p.pool.width, 0, kV),
        epilogue_(t.transposed) {}

  bool prepare() {
    const int64_t positions = z_rows_ * p_.pool.width;
    // beside the frame's rows: whole vectors behind the last
    return frame_.prepare() && g_.allocate(positions * filters_.blocks * kV) &&
           m_.allocate(kGemmRows * kColumns) &&
           taps_.allocate(kGemmRows * filters_.groups * kColumns + kV) &&
           dx_.allocate(bands_.rows * row_ + kV) && prepare_bias();
  }

  void run(int64_t item) {
    const int64_t n = item / bands_.count;
    const int64_t h_first = item % bands_.count * bands_.rows;
    const int64_t h_last = least(h_first + bands_.rows, p_.height);
    memset(dx_.data, 0, static_cast<size_t>((h_last - h_first) * row_) * sizeof(float));
    // rows of z whose taps reach the band
    const int64_t reach = h_first + p_.pad_height - (p_.kernel_height - 1);
    const int64_t first = most(0, divide_up(most(reach, 0), p_.stride_height));
    const int64_t last = least((h_last - 1 + p_.pad_height) / p_.stride_height + 1, p_.pool.height);
    if (first < last) {
      fill(n, first, last - first);
      for (int64_t z = first; z < last; ++z) {
        add_row(z - first, last - first, z * p_.stride_height - p_.pad_height - h_first,
                h_last - h_first);
      }
    }
    store_rows(n, h_first, h_last);
  }

 private:
  // The bias of a row of NHWC.
  bool prepare_bias() {
    if (!epilogue_.bias() || !p_.x_channels_last) return true;
    if (!bias_.allocate(p_.width * p_.in_channels)) return false;
    for (int64_t i = 0; i < p_.width * p_.in_channels; ++i) {
      bias_.data[i] = epilogue_.bias()[i % p_.in_channels];
    }
    return true;
  }

  void activate(float* row, int64_t count, RowBias<float> bias) const {
    if (epilogue_.exists()) activate_row(epilogue_.output(), row, bias, row, count);
  }

  // dz as the products read it: [block of filters][row][column][filter].
  void fill(int64_t n, int64_t first, int64_t rows) {
    const int64_t count = rows * p_.pool.width * kV;
    for (int64_t b = 0; b < filters_.blocks; ++b) {
      const int64_t k = b * kV;
      frame_.fill(n, first, rows, k, static_cast<int>(least(p_.pool.channels - k, kV)));
      memcpy(g_.data + b * count, frame_.at(first, 0), static_cast<size_t>(count) * sizeof(float));
    }
  }

  // Row `row` of the `rows` that are there; its first taps lie in row `top` of the band.
  void add_row(int64_t row, int64_t rows, int64_t top, int64_t height) {
    const int64_t width = p_.pool.width;
    const int64_t step = filters_.groups * kColumns;
    for (int64_t q = 0; q < width; q += kGemmRows) {
      const int count = static_cast<int>(least(width - q, kGemmRows));
      const float* g = g_.data + (row * width + q) * kV;
      for (int64_t group = 0; group < filters_.groups; ++group) {
        const int vectors = filters_.vectors(group);
        const float* w = filters_.at(group);
        gemm_tile_for(count, vectors)(g, rows * width * kV, w, w, filters_.sums(), m_.data);
        for (int i = 0; i < count; ++i) {
          for (int v = 0; v < vectors; ++v) {
            store<float>(taps_.data + i * step + group * kColumns + v * kV,
                         load<float>(m_.data + (i * vectors + v) * kV));
          }
        }
      }
      // every other position: their taps overlap less, and no sum waits for the one before
      for (int begin = 0; begin < 2; ++begin) {
        for (int i = begin; i < count; i += 2) {
          for (int64_t r = most(0, -top); r < least(p_.kernel_height, height - top); ++r) {
            add_run(taps_.data + i * step + r * filters_.run,
                    dx_.data + (top + r) * row_ + (q + i) * p_.stride_width * p_.in_channels);
          }
        }
      }
    }
  }

  void add_run(const float* taps, float* target) const {
    int64_t i = 0;
    for (; i + kV <= filters_.run; i += kV) {
      store<float>(target + i, load<float>(target + i) + load<float>(taps + i));
    }
    if (i == filters_.run) return;
    const int lanes = static_cast<int>(filters_.run - i);
    store_lanes<float>(target + i,
                       load_lanes<float>(target + i, lanes) + load_lanes<float>(taps + i, lanes),
                       lanes);
  }

  void store_rows(int64_t n, int64_t h_first, int64_t h_last) const {
    const int64_t C = p_.in_channels;
    float* image = static_cast<float*>(t_.dx) + n * C * p_.height * p_.width;
    // columns that some tap reaches: those of the frame without its padding
    const int64_t reached = most(0, least(p_.width, row_ / C - p_.pad_width));
    for (int64_t h = h_first; h < h_last; ++h) {
      const float* row = dx_.data + (h - h_first) * row_ + p_.pad_width * C;
      if (p_.x_channels_last) {
        float* target = image + h * p_.width * C;
        memcpy(target, row, static_cast<size_t>(reached * C) * sizeof(float));
        memset(target + reached * C, 0,
               static_cast<size_t>((p_.width - reached) * C) * sizeof(float));
        activate(target, p_.width * C, RowBias<float>{-0.0f, bias_.data});
        continue;
      }
      for (int64_t c = 0; c < C; ++c) {
        float* target = image + (c * p_.height + h) * p_.width;
        for (int64_t w = 0; w < reached; ++w) target[w] = row[w * C + c];
        for (int64_t w = reached; w < p_.width; ++w) target[w] = 0;
        activate(target, p_.width,
                 RowBias<float>{epilogue_.bias() ? epilogue_.bias()[c] : -0.0f, nullptr});
      }
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const Filters& filters_;
  const Bands& bands_;
  const int64_t z_rows_;  // that a band reads at most
  const int64_t row_;     // floats of a row of the frame of dx
  GradientFrame frame_;
  const TransposedEpilogue epilogue_;
  Scratch<float> bias_;  // [column][C]; nothing where there is no bias
  Scratch<float> g_;     // [block][row][column][kV]
  Scratch<float> m_;     // [position][columns of a group]
  Scratch<float> taps_;  // [position][R][S][C]
  Scratch<float> dx_;    // [row][column, from -padding on][C]
};

}  // namespace

bool few_channels_input_gradient(const ConvActPool2dProblem& p, const ConvBackwardTensors& t,
                                 int threads) {
  Filters filters(p);
  const Bands bands(p);
  const void* prepared = t.transposed ? t.transposed->prepared : nullptr;
  if (!filters.prepare(static_cast<const float*>(t.w), static_cast<const float*>(prepared))) {
    return false;
  }
  const int64_t products =
      p.pool.batch * p.pool.channels * p.pool.height * p.pool.width * filters.columns;
  const int64_t items = p.pool.batch * bands.count;
  const int64_t useful = most(1, least(threads, products / kProductsPerThread));
  return in_parallel(items, static_cast<int>(least(useful, items)), [&](Range range) {
    Worker worker(p, t, filters, bands);
    if (!worker.prepare()) return false;
    for (int64_t item = range.first; item < range.last; ++item) worker.run(item);
    return true;
  });
}

int64_t few_channels_transposed_size(const ConvActPool2dProblem& p) { return Filters(p).size(); }

bool few_channels_prepare_transposed(const ConvActPool2dProblem& p, const void* w, void* prepared,
                                     int) {
  Filters(p).fill(static_cast<const float*>(w), static_cast<float*>(prepared));
  return true;
}

}  // namespace CMF_ISA
}  // namespace cmf

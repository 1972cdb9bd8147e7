// y = pool(act(x * w + bias)): frames of x, products on a matrix unit, and what follows them, for
// bands of rows that stay in cache.
#include <string.h>

#include "cpu/implicit_gemm.h"
#include "cpu/implicit_gemm_tile.h"
#include "cpu/pooled_bands.h"
#include "cpu/scratch.h"
#include "cpu/winograd_direct.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;

// Of z, for the filters of a panel: it is read again at once.
constexpr int64_t kOutputBytes = 128 << 10;
// Of x's parts, which each panel reads again: a part of a common second cache; with several taps
// each is read by all of them from a nearer one, and the third is near enough.
constexpr int64_t kFrameBytes = 1 << 20;
constexpr int64_t kSharedFrameBytes = 4 << 20;
// A panel's weights come from the third cache once for this many positions.
constexpr int64_t kLeastPositions = 512;
constexpr int64_t kLargestFrame = INT64_C(1) << 28;  // bytes
constexpr int64_t kProductsPerThread = INT64_C(1) << 20;

// How y is cut: bands of rows of an image, and some bands that share a panel's weights in cache.
struct Cut {
  Cut(const ConvActPool2dProblem& p, int threads) {
    const ActPool2dProblem& pool = p.pool;
    const bool alone = p.kernel_height == 1 && p.kernel_width == 1;
    const int64_t most_bytes = alone ? kFrameBytes : kSharedFrameBytes;
    rows = 1;
    for (int64_t parts = 1; parts <= pool.out_height; ++parts) {
      rows = divide_up(pool.out_height, parts);
      const ImplicitGemmLayout layout(p, z_rows(pool));
      if (z_rows(pool) * layout.pitch * kPanelFilters * 4 <= kOutputBytes &&
          layout.frame * 2 <= most_bytes) {
        break;
      }
    }
    bands = divide_up(pool.out_height, rows);
    const ImplicitGemmLayout layout(p, z_rows(pool));
    const int64_t segments = pool.batch * bands;
    together = most(1, least(kLeastPositions / most(1, z_rows(pool) * layout.pitch),
                             most_bytes / (layout.frame * 2)));
    together = most(1, least(together, segments / threads));
    units = divide_up(segments, together);
  }
  // of z, that a band's windows reach
  int64_t z_rows(const ActPool2dProblem& pool) const {
    return least((rows - 1) * pool.pool_stride_height + pool.pool_height, pool.height);
  }

  int64_t rows;      // of y, in a band
  int64_t bands;     // of an image
  int64_t together;  // bands of a unit
  int64_t units;
};

class Forward {
 public:
  Forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads)
      : p_(p),
        t_(t),
        cut_(p, threads),
        layout_(p, cut_.z_rows(p.pool)),
        panels_(divide_up(p.pool.channels, kPanelFilters)) {
    const int64_t products = p.pool.batch * p.pool.channels * p.pool.height * p.pool.width *
                             layout_.blocks * kTileElements;
    threads_ = static_cast<int>(most(1, least(threads, products / kProductsPerThread)));
  }

  bool run() {
    if (!prepare()) return false;
    // few units are shared by several threads, each with filters of its own
    const int64_t cuts =
        cut_.units >= 4 * threads_ || threads_ == 1
            ? 1
            : least(panels_, cut_.units % threads_ == 0 ? 1 : divide_up(2 * threads_, cut_.units));
    return in_parallel(cut_.units * cuts, threads_, [&](Range units) {
      Worker worker(*this);
      if (!worker.prepare()) return false;
      for (int64_t unit = units.first; unit < units.last; ++unit) {
        worker.run(unit / cuts,
                   part_of(panels_, static_cast<int>(unit % cuts), static_cast<int>(cuts)));
      }
      return true;
    });
  }

 private:
  bool prepare() {
    const int64_t padded = panels_ * kPanelFilters;
    if (!offsets_.allocate(layout_.blocks) || !bias_.allocate(padded)) return false;
    for (int64_t i = 0; i < layout_.blocks; ++i) offsets_.data[i] = layout_.offset(p_, i);
    const float* bias = static_cast<const float*>(t_.bias);
    for (int64_t k = 0; k < padded; ++k) {
      bias_.data[k] = bias && k < p_.pool.channels ? bias[k] : 0.0f;
    }
    return true;
  }

  class Worker {
   public:
    explicit Worker(const Forward& f)
        : f_(f),
          p_(f.p_),
          frame_(f.p_, f.layout_),
          epilogue_(f.p_.pool, kPanelFilters, f.cut_.rows) {}

    bool prepare() {
      const ImplicitGemmLayout& layout = f_.layout_;
      const int64_t frames = f_.cut_.together * layout.frame;
      // a tile of 64 positions may begin at the last one
      const int64_t positions = layout.pitch * f_.cut_.z_rows(p_.pool) + 4 * kTileRows;
      if (!frames_.allocate(frames) || !z_.allocate(positions * kPanelFilters) ||
          !row_.allocate(frame_.scratch_floats()) || !epilogue_.prepare()) {
        return false;
      }
      for (int64_t i = 0; i < f_.cut_.together; ++i) frame_.clear(frames_.data + i * layout.frame);
      return true;
    }

    void run(int64_t unit, Range panels) {
      const int64_t segments = p_.pool.batch * f_.cut_.bands;
      const Range range = {unit * f_.cut_.together, least((unit + 1) * f_.cut_.together, segments)};
      for (int64_t i = range.first; i < range.last; ++i) fill(i, i - range.first);
      for (int64_t panel = panels.first; panel < panels.last; ++panel) {
        for (int64_t i = range.first; i < range.last; ++i) finish(i, i - range.first, panel);
      }
    }

   private:
    Band band(int64_t segment, int64_t panel) const {
      const ActPool2dProblem& pool = p_.pool;
      Band band;
      band.n = segment / f_.cut_.bands;
      band.p_first = segment % f_.cut_.bands * f_.cut_.rows;
      band.p_last = least(band.p_first + f_.cut_.rows, pool.out_height);
      band.k_first = panel * kPanelFilters;
      band.k_count = static_cast<int>(least(pool.channels - band.k_first, kPanelFilters));
      return band;
    }

    void fill(int64_t segment, int64_t slot) {
      const Band b = band(segment, 0);
      const Range rows = band_rows(p_.pool, b);
      const float* image =
          static_cast<const float*>(f_.t_.x) + b.n * p_.in_channels * p_.height * p_.width;
      frame_.fill(image, rows.first, rows.last - rows.first, row_.data,
                  frames_.data + slot * f_.layout_.frame);
    }

    void finish(int64_t segment, int64_t slot, int64_t panel) {
      const Band b = band(segment, panel);
      const Range rows = band_rows(p_.pool, b);
      multiply(slot, panel, rows.last - rows.first, b.k_count);
      if (!close_rows(rows.last - rows.first)) sum_again(b, rows);
      epilogue_.pool(z_.data, rows.first, b, f_.t_);
    }

    void multiply(int64_t slot, int64_t panel, int64_t rows, int count) {
      const ImplicitGemmLayout& layout = f_.layout_;
      const int64_t positions = (rows - 1) * layout.pitch + p_.pool.width;
      const uint16_t* frame = frames_.data + slot * layout.frame;
      ImplicitGemmTile tile;
      tile.step = layout.position * 2;
      tile.part = layout.part;
      tile.offsets = f_.offsets_.data;
      tile.blocks = layout.blocks;
      tile.taps = layout.taps_height * layout.taps_width;
      tile.last_tap = layout.merged ? -1 : tile.taps - 1;
      tile.w = static_cast<const uint16_t*>(f_.t_.prepared) + panel * layout.blocks * kBlockSize;
      tile.bias = f_.bias_.data + panel * kPanelFilters;
      int64_t i = 0;
      const auto step = [&](int tiles) {
        tile.x = frame + i * layout.position;
        tile.z = z_.data + i * kPanelFilters;
        i += tiles * kTileRows;
      };
      if (count <= kTileColumns) {
        while (positions - i > 2 * kTileRows) {
          step(4);
          implicit_gemm_column(unit_, tile);
        }
        while (i < positions) {
          step(1);
          implicit_gemm_tile<1, 1>(unit_, tile);
        }
        return;
      }
      while (positions - i > kTileRows) {
        step(2);
        implicit_gemm_tile<2, 2>(unit_, tile);
      }
      if (i < positions) {
        step(1);
        implicit_gemm_tile<1, 2>(unit_, tile);
      }
    }

    // z's rows without what lies between them. Whether all of it is finite.
    bool close_rows(int64_t rows) {
      const int64_t row = p_.pool.width * kPanelFilters;
      const int64_t pitch = f_.layout_.pitch * kPanelFilters;
      V spread[2] = {};
      for (int64_t r = 0; r < rows; ++r) {
        const float* source = z_.data + r * pitch;
        float* target = z_.data + r * row;
        for (int64_t i = 0; i < row; i += 2 * kV) {
          const V a = load<float>(source + i), b = load<float>(source + i + kV);
          spread[0] += a - a;
          spread[1] += b - b;
          if (source != target) {
            store<float>(target + i, a);
            store<float>(target + i + kV, b);
          }
        }
      }
      return !any_nan(spread[0] + spread[1]);
    }

    // What is not finite may have come of infinity's parts, or of zeros beside a window.
    void sum_again(const Band& band, const Range& rows) {
      const int64_t width = p_.pool.width;
      for (int64_t i = 0; i < (rows.last - rows.first) * width; ++i) {
        for (int k = 0; k < band.k_count; ++k) {
          float& z = z_.data[i * kPanelFilters + k];
          if (z - z == 0) continue;
          const int64_t channel = band.k_first + k;
          z = direct_output(p_, f_.t_, band.n, rows.first + i / width, i % width, channel) +
              f_.bias_.data[channel];
        }
      }
    }

    const Forward& f_;
    const ConvActPool2dProblem& p_;
    const ImplicitGemmFrame frame_;
    BandEpilogue epilogue_;
    MatrixUnit unit_;
    Scratch<uint16_t> frames_;
    Scratch<float> z_;    // [positions][kPanelFilters]
    Scratch<float> row_;  // ImplicitGemmFrame's
  };

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const Cut cut_;
  const ImplicitGemmLayout layout_;
  const int64_t panels_;
  int threads_;
  Scratch<int64_t> offsets_;
  Scratch<float> bias_;
};

}  // namespace

const char* implicit_gemm_refusal(const ConvActPool2dProblem& p, bool backward) {
  if (backward) return "has no backward of its own";
  if (static_cast<DType>(p.pool.dtype) != DType::kFloat32) return "computes in float32 alone";
  if (p.groups != 1) return "takes one group alone";
  if (p.pool.index_itemsize > 1) return "takes max pooling windows of up to 255 elements";
  if (p.kernel_height * p.kernel_width > 1024) return "takes filters of up to 1024 taps";
  const int64_t reach = (p.kernel_width - 1) * p.dilation_width + 1;
  const int64_t columns = p.width + 2 * p.pad_width + reach;
  const int64_t rows =
      p.pool.pool_height * p.stride_height + (p.kernel_height - 1) * p.dilation_height + 1;
  // in float: the product may be larger than 64 bits have
  if (double(columns) * double(rows) * double(p.in_channels + kTileElements) *
          double(p.kernel_height) * 2 * kParts >
      double(kLargestFrame)) {
    return "takes rows of up to 256 MiB alone";
  }
  return nullptr;
}

bool implicit_gemm_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& tensors,
                           int threads) {
  return Forward(p, tensors, threads).run();
}

}  // namespace CMF_ISA
}  // namespace cmf

// A 1x1 convolution with what follows it: products of packed pixels and packed weights, whose sums
// get their bias and activation in registers. x is read once. With a pooling, bands of the products
// pass through scratch memory.
#include "cpu/pointwise.h"

#include "cpu/pointwise_pack.h"
#include "cpu/pointwise_tile.h"
#include "cpu/pooled_bands.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
// Outputs above this are stored past the caches: their readers would hardly find them there.
constexpr int64_t kLargeBytes = INT64_C(1) << 23;
constexpr int64_t kPackedBytes = INT64_C(1) << 17;  // of pixels: beside weights in the second cache
constexpr int64_t kProductsPerThread = INT64_C(1) << 18;

class Forward {
 public:
  Forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads)
      : p_(p),
        t_(t),
        input_{static_cast<const float*>(t.x), static_cast<const float*>(t.x_scale),
               static_cast<const float*>(t.x_shift)},
        step_(round_up(p.in_channels, kV)),
        panels_((p.pool.channels + kTileLanes - 1) / kTileLanes),
        quick_(quick_activation(p.pool)),
        afterwards_(quick_.kind == QuickActivation::kAfterwards),
        pixel_(y_pixel(p.pool, t)) {
    const ActPool2dProblem& pool = p.pool;
    const int64_t pixels = pool.batch * pool.height * pool.width;
    const int64_t most = pixels * pool.channels * p.in_channels / kProductsPerThread;
    threads_ = most < 2 ? 1 : most < threads ? static_cast<int>(most) : threads;
    const int64_t run = filters_are_rows(p) ? pool.height * pool.width : pool.channels;
    past_caches_ = !afterwards_ && run % kLineFloats == 0 && pixel_ % kLineFloats == 0 &&
                   reinterpret_cast<uintptr_t>(t.y) % CMF_VECTOR_BYTES == 0 &&
                   pixels * pool.channels * 4 > kLargeBytes;
  }

  bool run() {
    if (!prepare()) return false;
    if (filters_are_rows(p_)) return run_filters();
    return p_.pool.pool == Pool::kNone && p_.pool.channels_last ? run_pixels() : run_bands();
  }

 private:
  // The bias, filled up to whole tiles.
  bool prepare() {
    const int64_t K = p_.pool.channels;
    const int64_t padded = round_up(K, kTileLanes);
    if (!scratch_.allocate(padded)) return false;
    const float* bias = static_cast<const float*>(t_.bias);
    for (int64_t k = 0; k < padded; ++k) scratch_.data[k] = bias && k < K ? bias[k] : 0.0f;
    bias_ = scratch_.data;
    weights_ = static_cast<const float*>(t_.prepared);
    return true;
  }

  // Tiles of `rows` packed pixels by panels [first, last): panel's first column goes to
  // y + panel · panel_step. `ahead`: the pixels to be packed next, or null.
  void multiply(const float* packed, TileRows rows, Range panels, float* y, int64_t y_row,
                int64_t panel_step, QuickActivation act, bool past_caches,
                const float* ahead) const {
    PointwiseTile tile;
    tile.ahead_step = 32;
    tile.channels = p_.in_channels;
    tile.row_bias = nullptr;
    tile.y_row = y_row;
    tile.act = act;
    tile.past_caches = past_caches;
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t left = p_.pool.channels - panel * kTileLanes;
      tile.columns = left < kTileLanes ? static_cast<int>(left) : kTileLanes;
      tile.b = weights_ + panel * kTileLanes * p_.in_channels;
      tile.bias = bias_ + panel * kTileLanes;
      for (int i = 0; i < rows.tiles(); ++i) {
        const Range part = rows.tile(i);
        tile.a = packed + part.first * step_;
        tile.y = y + part.first * y_row + panel * panel_step;
        // one tile's pixels are as long as the next one's
        tile.ahead = ahead + part.first * p_.in_channels;
        tile.ahead_count =
            ahead && panel == panels.first ? static_cast<int>(part.last - part.first + 1) / 2 : 0;
        const int vectors = tile.columns > kV ? 2 : 1;
        pointwise_kernel_for(static_cast<int>(part.last - part.first), vectors)(tile);
      }
    }
  }

  // NHWC y without a pooling: chunks of all images' pixels.
  bool run_pixels() const {
    const ActPool2dProblem& pool = p_.pool;
    const int64_t K = pool.channels;
    const int64_t pixels = pool.batch * pool.height * pool.width;
    int64_t most = kPackedBytes / (step_ * 4) / kGemmRows;
    most = (most < 1 ? 1 : most > 8 ? 8 : most) * kGemmRows;
    const int chunks = static_cast<int>((pixels + most - 1) / most);
    const int64_t cuts = cuts_of(chunks, panels_, threads_);
    return in_parallel(chunks * cuts, threads_, [&](Range units) {
      Scratch<float> packed;
      if (!packed.allocate(most * step_)) return false;
      for (int64_t unit = units.first; unit < units.last; ++unit) {
        const Range chunk = part_of(pixels, static_cast<int>(unit / cuts), chunks);
        const Range panels =
            part_of(panels_, static_cast<int>(unit % cuts), static_cast<int>(cuts));
        pack_pixels(p_, input_, chunk, packed.data);
        float* y = static_cast<float*>(t_.y) + chunk.first * pixel_;
        const int64_t count = chunk.last - chunk.first;
        multiply(packed.data, TileRows{count}, panels, y, pixel_, kTileLanes,
                 afterwards_ ? no_activation() : quick_, past_caches_,
                 p_.x_channels_last && unit + 1 < units.last
                     ? input_.x + chunk.last * p_.in_channels
                     : nullptr);
        if (!afterwards_) continue;
        const int64_t first = panels.first * kTileLanes;
        const int64_t last = panels.last == panels_ ? K : panels.last * kTileLanes;
        for (int64_t i = 0; i < count; ++i) {
          float* row = y + i * pixel_ + first;
          activate_row(pool, row, RowBias<float>{-0.0f, nullptr}, row, last - first);
        }
      }
      if (past_caches_) fence_streams();
      return true;
    });
  }

  // All else but NCHW to NCHW: bands of kTileLanes channels.
  bool run_bands() const {
    const ActPool2dProblem& pool = p_.pool;
    const PooledBands bands(pool, pool.width * kTileLanes * 4);
    const int64_t most = bands.most * pool.width;
    const int64_t cuts = cuts_of(pool.batch * bands.count, panels_, threads_);
    return in_parallel(pool.batch * bands.count * cuts, threads_, [&](Range units) {
      Scratch<float> scratch;
      BandEpilogue epilogue(pool, kTileLanes, bands.rows);
      if (!scratch.allocate(most * (step_ + kTileLanes)) || !epilogue.prepare()) return false;
      float* z = scratch.data + most * step_;
      for (int64_t i = 0; i < most * kTileLanes; ++i) z[i] = 0.0f;
      for (int64_t unit = units.first; unit < units.last; ++unit) {
        const int64_t n = unit / cuts / bands.count;
        const Range panels =
            part_of(panels_, static_cast<int>(unit % cuts), static_cast<int>(cuts));
        Band band = band_of(pool, bands, n, unit / cuts % bands.count, 0, kTileLanes);
        const Range rows = band_rows(pool, band);
        const int64_t first = n * pool.height;
        const Range pixels = {(first + rows.first) * pool.width, (first + rows.last) * pool.width};
        pack_pixels(p_, input_, pixels, scratch.data);
        for (int64_t panel = panels.first; panel < panels.last; ++panel) {
          band = band_of(pool, bands, n, unit / cuts % bands.count, panel * kTileLanes, kTileLanes);
          multiply(scratch.data, TileRows{pixels.last - pixels.first}, Range{panel, panel + 1}, z,
                   kTileLanes, 0, no_activation(), false, nullptr);
          epilogue.pool(z, rows.first, band, t_);
        }
      }
      return true;
    });
  }

  // NCHW to NCHW without a pooling: the filters are rows, panels of pixels columns.
  bool run_filters() const {
    const ActPool2dProblem& pool = p_.pool;
    const int64_t area = pool.height * pool.width;
    const int64_t across = (area + kTileLanes - 1) / kTileLanes;
    const TileRows rows = {pool.channels};
    const bool adjacent = p_.stride_height == 1 && p_.stride_width == 1;
    const int64_t cuts = cuts_of(pool.batch * across, rows.tiles(), threads_);
    return in_parallel(pool.batch * across * cuts, threads_, [&](Range units) {
      Scratch<float> packed;
      if (!packed.allocate(p_.in_channels * kTileLanes)) return false;
      for (int64_t unit = units.first; unit < units.last; ++unit) {
        const int64_t n = unit / cuts / across;
        const int64_t first = unit / cuts % across * kTileLanes;
        const int64_t last = first + kTileLanes < area ? first + kTileLanes : area;
        const float* image = input_.x + n * p_.in_channels * p_.height * p_.width;
        pack_columns(p_, input_, n, Range{first, last}, packed.data);
        const Range tiles =
            part_of(rows.tiles(), static_cast<int>(unit % cuts), static_cast<int>(cuts));
        float* y = static_cast<float*>(t_.y) + n * pool.channels * area + first;
        multiply_filters(packed.data, rows, tiles, static_cast<int>(last - first), y, area,
                         adjacent && last < area ? image + last : nullptr);
      }
      if (past_caches_) fence_streams();
      return true;
    });
  }

  void multiply_filters(const float* packed, TileRows rows, Range tiles, int columns, float* y,
                        int64_t area, const float* ahead) const {
    PointwiseTile tile;
    tile.b = packed;
    tile.channels = p_.in_channels;
    tile.bias = nullptr;
    tile.y_row = area;
    tile.columns = columns;
    tile.act = afterwards_ ? no_activation() : quick_;
    tile.past_caches = past_caches_;
    tile.ahead_step = p_.height * p_.width;
    for (int64_t i = tiles.first; i < tiles.last; ++i) {
      const Range part = rows.tile(static_cast<int>(i));
      tile.a = weights_ + part.first * step_;
      tile.row_bias = bias_ + part.first;
      tile.y = y + part.first * area;
      tile.ahead = ahead;
      tile.ahead_count = ahead && i == tiles.first ? kV : 0;
      pointwise_kernel_for(static_cast<int>(part.last - part.first), columns > kV ? 2 : 1)(tile);
      for (int64_t k = part.first; afterwards_ && k < part.last; ++k) {
        activate_row(p_.pool, y + k * area, RowBias<float>{-0.0f, nullptr}, y + k * area, columns);
      }
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const PointwiseInput input_;
  const int64_t step_;    // C, rounded up to whole vectors
  const int64_t panels_;  // of the output channels, where those are columns
  const QuickActivation quick_;
  const bool afterwards_;
  const int64_t pixel_;  // of y
  bool past_caches_;
  int threads_;
  Scratch<float> scratch_;
  const float* bias_ = nullptr;
  const float* weights_ = nullptr;
};

}  // namespace

const char* pointwise_refusal(const ConvActPool2dProblem& p, bool backward) {
  if (static_cast<DType>(p.pool.dtype) != DType::kFloat32) return "takes float32 alone";
  if (p.kernel_height != 1 || p.kernel_width != 1) return "takes 1x1 kernels alone";
  if (p.groups != 1) return "takes one group alone";
  if (p.pad_height != 0 || p.pad_width != 0) return "takes no padding";
  if (p.pool.index_itemsize > 1) return "takes max pooling windows of up to 255 elements";
  if (backward && p.pool.saved == Saved::kInput) {
    return "keeps no convolution output for the backward of this activation";
  }
  return nullptr;
}

int64_t pointwise_prepared_size(const ConvActPool2dProblem& p) { return packed_weights_size(p); }

bool pointwise_prepare(const ConvActPool2dProblem& p, const void* w, void* prepared, int threads) {
  pack_weights(p, static_cast<const float*>(w), static_cast<float*>(prepared), threads);
  return true;
}

bool pointwise_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  return Forward(p, t, threads).run();
}

}  // namespace CMF_ISA
}  // namespace cmf

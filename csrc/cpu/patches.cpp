// The transposed convolution whose patches don't overlap: each pixel of its input times the weights
// of each tap, bias and activation in registers, stored where the tap's pixels lie.
#include "cpu/patches.h"

#include "cpu/activated_tiles.h"
#include "cpu/patches_layout.h"
#include "cpu/pointwise_pack.h"
#include "cpu/scratch.h"
#include "cpu/simd_shuffle.h"
#include "cpu/transposed_epilogue.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kLargeBytes = INT64_C(1) << 23;   // stored past the caches
constexpr int64_t kPackedBytes = INT64_C(1) << 19;  // of pixels: beside weights in the second cache
constexpr int64_t kMostTiles = 16;
constexpr int64_t kProductsPerThread = INT64_C(1) << 18;

class Transposed {
 public:
  Transposed(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads)
      : p_(p),
        t_(t),
        layout_(p),
        epilogue_(t.transposed),
        afterwards_(epilogue_.quick().kind == QuickActivation::kAfterwards),
        step_(round_up(layout_.inner, kV)),
        x_(static_cast<const float*>(t.dy)),
        y_(static_cast<float*>(t.dx)) {
    const int64_t outputs = p.pool.batch * p.in_channels * p.height * p.width;
    threads_ =
        static_cast<int>(most(1, least(threads, outputs * layout_.inner / kProductsPerThread)));
    pixel_ = t.transposed->y_pixel ? t.transposed->y_pixel : layout_.filters;
    large_ = outputs * 4 > kLargeBytes;
    past_caches_ = large_ && layout_.pixels_are_rows && layout_.filters % kLineFloats == 0 &&
                   pixel_ % kLineFloats == 0 &&
                   reinterpret_cast<uintptr_t>(y_) % CMF_VECTOR_BYTES == 0;
  }

  bool run() {
    const int64_t padded = layout_.panels * kTileLanes;
    weights_ = static_cast<const float*>(t_.transposed->prepared);
    const int64_t floats = weights_ ? 0 : layout_.taps * layout_.tap_floats();
    if (!scratch_.allocate(padded + floats)) return false;
    bias_ = scratch_.data;
    const int64_t pixels_of_channel = layout_.filters / p_.in_channels;
    for (int64_t k = 0; k < padded; ++k) {
      const bool exists = epilogue_.bias() && k < layout_.filters;
      bias_[k] = exists ? epilogue_.bias()[k / pixels_of_channel] : -0.0f;
    }
    if (!weights_) {
      pack_patch_weights(layout_, static_cast<const float*>(t_.w), bias_ + padded, threads_);
      weights_ = bias_ + padded;
    }
    return layout_.pixels_are_rows ? run_pixels() : run_planes();
  }

 private:
  PointwiseTile tile() const {
    PointwiseTile tile;
    tile.channels = layout_.inner;
    tile.row_bias = nullptr;
    tile.bias = nullptr;
    tile.act = afterwards_ ? no_activation() : epilogue_.quick();
    tile.past_caches = past_caches_;
    tile.ahead = nullptr;
    tile.ahead_step = tile.ahead_count = 0;
    return tile;
  }

  void activate(float* row, int64_t count) const {
    if (!afterwards_) return;
    activate_row(epilogue_.output(), row, RowBias<float>{-0.0f, nullptr}, row, count);
  }

  // Pixels whose patches lie at equal distances: a row of the input's, or all where they are one
  // column.
  struct Lines {
    int64_t count;
    int64_t pixels;
    int64_t y_line;
    int64_t y_pixel;
  };
  Lines lines() const {
    const int64_t rows = p_.pool.batch * p_.pool.height, width = p_.pool.width;
    const int64_t y_line = layout_.whole ? pixel_ : p_.kernel_height * p_.width * pixel_;
    if (width == 1) return Lines{1, rows, 0, y_line};
    return Lines{rows, width, y_line, p_.kernel_width * pixel_};
  }

  // Channels of y side by side: chunks of a line, or of several, by panels of filters.
  bool run_pixels() const {
    const Lines all = lines();
    const int64_t room =
        most(least(kPackedBytes / (step_ * 4) / kGemmRows, kMostTiles), 1) * kGemmRows;
    const int cuts = static_cast<int>(divide_up(all.pixels, room));
    const int64_t together = cuts > 1 ? 1 : most(1, room / all.pixels);
    const int64_t chunks = divide_up(all.count, together) * cuts;
    const int64_t columns = layout_.taps * layout_.panels;
    const int64_t parts = cuts_of(chunks, columns, threads_);
    return in_parallel(chunks * parts, threads_, [&](Range units) {
      Scratch<float> packed;
      if (!packed.allocate(most(room, together * all.pixels) * step_)) return false;
      int64_t known = -1;  // the chunk that is packed
      for (int64_t unit = units.first; unit < units.last; ++unit) {
        const int64_t chunk = unit / parts;
        const int64_t first = chunk / cuts * together;
        const Range lines = {first, least(first + together, all.count)};
        const Range pixels = part_of(all.pixels, static_cast<int>(chunk % cuts), cuts);
        for (int64_t line = lines.first; chunk != known && line < lines.last; ++line) {
          const int64_t begin = line * all.pixels;
          pack_pixels(layout_.pixels, plain(x_), Range{begin + pixels.first, begin + pixels.last},
                      packed.data + (line - lines.first) * (pixels.last - pixels.first) * step_);
        }
        known = chunk;
        const Range range =
            part_of(columns, static_cast<int>(unit % parts), static_cast<int>(parts));
        for (int64_t column = range.first; column < range.last; ++column) {
          multiply_pixels(all, lines, pixels, column, packed.data);
        }
      }
      if (past_caches_) fence_streams();
      return true;
    });
  }

  void multiply_pixels(const Lines& all, Range lines, Range pixels, int64_t column,
                       const float* packed) const {
    const int64_t tap = column / layout_.panels, panel = column % layout_.panels;
    const int64_t i = tap / p_.kernel_width, j = tap % p_.kernel_width;
    const int64_t k = panel * kTileLanes;
    PointwiseTile part = tile();
    part.b = weights_ + tap * layout_.tap_floats() + k * layout_.inner;
    part.bias = bias_ + k;
    part.columns = static_cast<int>(least(layout_.filters - k, kTileLanes));
    part.y_row = all.y_pixel;
    const TileRows rows = {pixels.last - pixels.first};
    ActivatedTiles activated(epilogue_.output());
    for (int64_t line = lines.first; line < lines.last; ++line) {
      float* y =
          y_ + line * all.y_line + pixels.first * all.y_pixel + (i * p_.width + j) * pixel_ + k;
      for (int r = 0; r < rows.tiles(); ++r) {
        const Range tile = rows.tile(r);
        const int count = static_cast<int>(tile.last - tile.first);
        part.a = packed + ((line - lines.first) * rows.count + tile.first) * step_;
        part.y = y + tile.first * all.y_pixel;
        const PointwiseKernel kernel = pointwise_kernel_for(count, part.columns > kV ? 2 : 1);
        if (afterwards_) {
          activated.run(part, count, kernel);
        } else {
          kernel(part);
        }
      }
    }
    activated.finish();
  }

  // Planes: filters by panels of pixels; the columns of a patch go to where they belong.
  bool run_planes() const {
    const int64_t area = p_.pool.height * p_.pool.width;
    const int64_t across = divide_up(area, kTileLanes);
    const TileRows rows = {layout_.filters};
    const int64_t parts = cuts_of(p_.pool.batch * across, rows.tiles(), threads_);
    return in_parallel(p_.pool.batch * across * parts, threads_, [&](Range units) {
      Scratch<float> scratch;
      const int64_t sums = p_.kernel_width * kGemmRows * kTileLanes;
      if (!scratch.allocate(sums + layout_.inner * kTileLanes)) return false;
      float* packed = scratch.data + sums;
      int64_t known = -1;  // the panel that is packed
      for (int64_t unit = units.first; unit < units.last; ++unit) {
        const int64_t panel = unit / parts, n = panel / across;
        const int64_t first = panel % across * kTileLanes;
        const Range pixels = {first, least(first + kTileLanes, area)};
        if (panel != known) {
          pack_columns(layout_.pixels, plain(x_), n, pixels, packed);
        }
        known = panel;
        const Range tiles =
            part_of(rows.tiles(), static_cast<int>(unit % parts), static_cast<int>(parts));
        for (int64_t i = tiles.first; i < tiles.last; ++i) {
          for (int64_t row = 0; row < p_.kernel_height; ++row) {
            multiply_planes(n, pixels, rows.tile(static_cast<int>(i)), row, packed, scratch.data);
          }
        }
      }
      if (large_) fence_streams();
      return true;
    });
  }

  // Row `row` of the patches.
  void multiply_planes(int64_t n, Range pixels, Range filters, int64_t row, const float* packed,
                       float* sums) const {
    const int count = static_cast<int>(filters.last - filters.first);
    PointwiseTile part = tile();
    part.b = packed;
    part.columns = static_cast<int>(pixels.last - pixels.first);
    part.row_bias = bias_ + filters.first;
    part.y_row = kTileLanes;
    for (int64_t j = 0; j < p_.kernel_width; ++j) {
      const int64_t tap = row * p_.kernel_width + j;
      part.a = weights_ + tap * layout_.tap_floats() + filters.first * step_;
      part.y = sums + j * kGemmRows * kTileLanes;
      pointwise_kernel_for(count, part.columns > kV ? 2 : 1)(part);
      for (int k = 0; k < count; ++k) activate(part.y + k * kTileLanes, part.columns);
    }
    for (int k = 0; k < count; ++k) {
      float* plane = y_ + (n * p_.in_channels + filters.first + k) * p_.height * p_.width;
      for (int64_t pixel = pixels.first; pixel < pixels.last;) {
        const int64_t h = pixel / p_.pool.width, w = pixel % p_.pool.width;
        const int64_t run = least(pixels.last - pixel, p_.pool.width - w);
        store_run(sums + k * kTileLanes + pixel - pixels.first, run,
                  plane + (h * p_.kernel_height + row) * p_.width + w * p_.kernel_width);
        pixel += run;
      }
    }
  }

  // `run` pixels of each column of the patches, side by side.
  void store_run(const float* sums, int64_t run, float* target) const {
    constexpr int64_t kNext = kGemmRows * kTileLanes;  // from a column's sums to the next one's
    const int64_t across = p_.kernel_width;
    for (int64_t i = 0; i < run; i += kV) {
      const int64_t lanes = least(run - i, kV);
      if (across == 2) {
        Vec<float> first, second;
        interleave<float>(load<float>(sums + i), load<float>(sums + kNext + i), &first, &second);
        store_pair(target + 2 * i, first, second, static_cast<int>(2 * lanes));
        continue;
      }
      for (int64_t j = 0; j < across; ++j) {
        for (int64_t lane = i; lane < i + lanes; ++lane) {
          target[lane * across + j] = sums[j * kNext + lane];
        }
      }
    }
  }

  void store_pair(float* target, Vec<float> first, Vec<float> second, int lanes) const {
    if (large_ && lanes == 2 * kV && reinterpret_cast<uintptr_t>(target) % kLineBytes == 0) {
      stream(target, first);
      stream(target + kV, second);
      return;
    }
    store_lanes<float>(target, first, lanes < kV ? lanes : kV);
    if (lanes > kV) store_lanes<float>(target + kV, second, lanes - kV);
  }

  const ConvActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const PatchLayout layout_;
  const TransposedEpilogue epilogue_;
  const bool afterwards_;
  const int64_t step_;  // inner, rounded up to whole vectors
  const float* const x_;
  float* const y_;
  int64_t pixel_;     // of y
  bool large_;        // whether y's readers would hardly find it in the caches
  bool past_caches_;  // the same where the tiles store y
  int threads_;
  Scratch<float> scratch_;
  float* bias_ = nullptr;
  const float* weights_ = nullptr;
};

// Along one axis: of one pixel a patch is all, whatever the stride.
bool covers(int64_t pixels, int64_t kernel, int64_t stride, int64_t pad, int64_t length) {
  return pad == 0 && length == pixels * kernel && (pixels == 1 || stride == kernel);
}

}  // namespace

const char* patches_transposed_refusal(const ConvActPool2dProblem& p) {
  if (static_cast<DType>(p.pool.dtype) != DType::kFloat32) return "takes float32 alone";
  if (p.groups != 1) return "takes one group alone";
  if (p.dilation_height != 1 || p.dilation_width != 1) return "takes dilation 1 alone";
  if (p.x_channels_last != p.pool.channels_last && p.pool.height * p.pool.width != 1) {
    return "takes tensors of one memory format alone";
  }
  if (!covers(p.pool.height, p.kernel_height, p.stride_height, p.pad_height, p.height) ||
      !covers(p.pool.width, p.kernel_width, p.stride_width, p.pad_width, p.width)) {
    return "takes windows that neither overlap nor leave a pixel out";
  }
  return nullptr;
}

bool patches_transposed(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  return Transposed(p, t, threads).run();
}

}  // namespace CMF_ISA
}  // namespace cmf

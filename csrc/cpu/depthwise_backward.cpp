// The gradients of a depthwise convolution with its activation: a band of g = dy · act'(y) is made
// in scratch memory; while it is in cache, the turned filter gives rows of dx, and sums over the
// band give its share of dw and dbias. Where the derivative wants the convolution's output, that is
// computed again.
#include "cpu/act_pool2d.h"
#include "cpu/act_row.h"
#include "cpu/channel_lanes.h"
#include "cpu/depthwise.h"
#include "cpu/depthwise_filter.h"
#include "cpu/depthwise_phases.h"
#include "cpu/depthwise_weights.h"
#include "cpu/integers.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kRowBytes = 32768;    // of g's rows, that are cut into groups of channels
constexpr int64_t kBandBytes = 262144;  // of g: beside x and dx in the second cache
constexpr int64_t kLeastRows = 4;       // of a band: its neighbours' g is made twice
constexpr int64_t kMostSlices = 64;     // of the batch, whose sums are added in order
constexpr int64_t kLargeBytes = INT64_C(1) << 23;

// How the work is cut: the batch's bands of rows into slices, the channels into groups.
struct Cut {
  int64_t group;   // channels
  int64_t groups;  // of them
  int64_t rows;    // of g in a band
  int64_t bands;   // of an image
  int64_t slices;

  explicit Cut(const ConvActPool2dProblem& p) {
    const ActPool2dProblem& pool = p.pool;
    group = kV;
    if (p.x_channels_last) {
      const int64_t fitting = kRowBytes / (pool.width * 4) / kV * kV;
      group = least(most(fitting, kV), pool.channels);
    }
    groups = (pool.channels + group - 1) / group;
    const int64_t fitting = kBandBytes / (pool.width * round_up(group, kV) * 4);
    rows = least(most(fitting, kLeastRows), pool.height);
    bands = (pool.height + rows - 1) / rows;
    slices = least(pool.batch * bands, kMostSlices);
  }
};

// The rows that one band touches.
struct BandRows {
  Range own;   // of g, for dw and dbias
  Range dx;    // of dx
  Range wide;  // of g with its zeros between, for dx
  Range g;     // of g in all
  Range x;     // that g's windows see

  BandRows(const ConvActPool2dProblem& p, const Cut& cut, int64_t band, bool need_dx) {
    const int64_t P = p.pool.height;
    const int64_t stride = p.stride_height;
    const int64_t reach = (p.kernel_height - 1) * p.dilation_height;
    own = Range{band * cut.rows, least((band + 1) * cut.rows, P)};
    g = own;
    dx = wide = Range{0, 0};
    if (need_dx) {
      dx.first = least(own.first * stride, p.height);
      dx.last = own.last == P ? p.height : least(own.last * stride, p.height);
      wide.first = most(dx.first + p.pad_height - reach, 0);
      wide.last = most(least(dx.last + p.pad_height, (P - 1) * stride + 1), wide.first);
      g.first = least(g.first, (wide.first + stride - 1) / stride);
      g.last = most(g.last, least((wide.last + stride - 1) / stride, P));
    }
    x.first = least(most(g.first * stride - p.pad_height, 0), p.height);
    x.last = least((g.last - 1) * stride - p.pad_height + reach + 1, p.height);
    x.last = most(x.last, x.first);
  }
};

class Backward {
 public:
  Backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t)
      : p_(p),
        t_(t),
        cut_(p),
        step_(round_up(p.pool.channels, kV)),
        taps_(p.kernel_height * p.kernel_width),
        again_(p.pool.saved == Saved::kInput),
        turned_(p.pool.channels),
        filter_(p.pool.channels),
        wide_(p),
        lanes_(p) {
    // dx is the convolution of g, with zeros between for a stride, by the turned filter
    wide_.height = (p.pool.height - 1) * p.stride_height + 1;
    wide_.width = (p.pool.width - 1) * p.stride_width + 1;
    wide_.pad_height = (p.kernel_height - 1) * p.dilation_height - p.pad_height;
    wide_.pad_width = (p.kernel_width - 1) * p.dilation_width - p.pad_width;
    wide_.stride_height = wide_.stride_width = 1;
    wide_.pool.height = p.height;
    wide_.pool.width = p.width;
    if (!p.x_channels_last) lanes_.in_channels = lanes_.image_channels = kV;
    const int64_t size = p.pool.batch * p.in_channels * p.height * p.width * 4;
    past_caches_ = kV == kLineFloats && p.x_channels_last && p.in_channels % kV == 0 &&
                   size > kLargeBytes && reinterpret_cast<uintptr_t>(t.dx) % CMF_VECTOR_BYTES == 0;
  }

  bool run(int threads) {
    const bool phases = has_phases(p_);
    if (t_.dx && !phases && !turned_.prepare(p_, t_.w, nullptr, true)) return false;
    if ((again_ || (t_.dx && phases)) && !filter_.prepare(p_, t_.w, t_.bias, false)) return false;
    const int64_t sums = cut_.slices * (taps_ + 1) * step_;
    if (!sums_.allocate(sums)) return false;
    for (int64_t i = 0; i < sums; ++i) sums_.data[i] = 0.0f;
    const int64_t units = cut_.slices * cut_.groups;
    const bool success = in_parallel(units, useful_threads(p_.pool, threads), [&](Range part) {
      Worker worker(*this);
      if (!worker.prepare()) return false;
      for (int64_t unit = part.first; unit < part.last; ++unit) {
        worker.run(unit / cut_.groups, unit % cut_.groups);
      }
      if (past_caches_) fence_streams();
      return true;
    });
    if (success) add_slices();
    return success;
  }

 private:
  // One thread's buffers: pixels whose lanes are a group's channels.
  class Worker {
   public:
    explicit Worker(const Backward& call) : c_(call), p_(call.p_), pool_(call.p_.pool) {
      const Cut& cut = c_.cut_;
      in_place_ = p_.x_channels_last;
      // the most that any band wants
      for (int64_t band = 0; band < cut.bands; ++band) {
        const BandRows rows(p_, cut, band, c_.t_.dx);
        const auto pixels = [](Range r, int64_t width) { return (r.last - r.first) * width; };
        g_size_ = most(g_size_, pixels(rows.g, pool_.width));
        x_size_ = most(x_size_, pixels(rows.x, p_.width));
        dx_size_ = most(dx_size_, pixels(rows.dx, p_.width));
        wide_size_ = most(wide_size_, pixels(rows.wide, c_.wide_.width));
      }
    }

    bool prepare() {
      const int64_t lanes = in_place_ ? c_.cut_.group : kV;
      const int64_t g = round_up(g_size_, kV) * lanes;
      const int64_t saved = c_.t_.saved || c_.again_ ? g : 0;
      const int64_t wide = c_.t_.dx && strided() ? wide_size_ * lanes : 0;
      const int64_t x = in_place_ ? 0 : round_up(x_size_, kV) * kV;
      const int64_t dx = in_place_ ? 0 : round_up(dx_size_, kV) * kV;
      if (!scratch_.allocate(g + saved + wide + x + dx)) return false;
      g_ = scratch_.data;
      saved_ = g_ + g;
      wide_ = saved_ + saved;
      x_ = wide_ + wide;
      dx_ = x_ + x;
      return true;
    }

    void run(int64_t slice, int64_t group) {
      const Cut& cut = c_.cut_;
      first_ = group * cut.group;
      count_ = static_cast<int>(least(pool_.channels - first_, cut.group));
      pixel_ = in_place_ ? count_ : kV;
      const Range items =
          part_of(pool_.batch * cut.bands, static_cast<int>(slice), static_cast<int>(cut.slices));
      for (int64_t item = items.first; item < items.last; ++item) {
        const BandRows rows(p_, cut, item % cut.bands, c_.t_.dx);
        n_ = item / cut.bands;
        const float* x = source(rows);
        make_gradient(rows, x);
        if (c_.t_.dw || c_.t_.dbias) {
          float* sums = c_.sums_.data + slice * (c_.taps_ + 1) * c_.step_ + first_;
          const WeightKernel kernel = {p_,           x,       in_place_ ? p_.in_channels : kV,
                                       g_base(rows), pixel_,  rows.own,
                                       sums,         c_.step_};
          if (c_.t_.dw) add_weight_sums(kernel, count_);
          if (c_.t_.dbias) add_bias_sums(kernel, count_, sums + c_.taps_ * c_.step_);
        }
        if (c_.t_.dx) input_gradient(rows);
      }
    }

   private:
    // Whether g must be spread for dx.
    bool strided() const {
      return (p_.stride_height > 1 || p_.stride_width > 1) && !has_phases(p_);
    }
    // where g's row 0 would lie
    const float* g_base(const BandRows& rows) const {
      return g_ - rows.g.first * pool_.width * pixel_;
    }

    // x from the image's first pixel on, as far as this band wants it.
    const float* source(const BandRows& rows) const {
      const float* x = static_cast<const float*>(c_.t_.x);
      const int64_t area = p_.height * p_.width;
      if (in_place_) return x + n_ * area * p_.in_channels + first_;
      if (c_.t_.dw || c_.again_) {
        planes_to_lanes(x + (n_ * p_.in_channels + first_) * area + rows.x.first * p_.width, area,
                        count_, (rows.x.last - rows.x.first) * p_.width, x_);
      }
      return x_ - rows.x.first * p_.width * kV;
    }

    // g's rows, from dy and what was saved.
    void make_gradient(const BandRows& rows, const float* x) {
      const int64_t Q = pool_.width;
      const int64_t pixels = (rows.g.last - rows.g.first) * Q;
      const int64_t area = pool_.height * Q;
      const RowBias<float> none = {-0.0f, nullptr};
      const float* dy = static_cast<const float*>(c_.t_.dy);
      const float* saved = static_cast<const float*>(c_.t_.saved);
      if (c_.again_) outputs_again(rows, x);
      if (!in_place_) {
        const int64_t offset = (n_ * pool_.channels + first_) * area + rows.g.first * Q;
        planes_to_lanes(dy + offset, area, count_, pixels, g_);
        if (saved && !c_.again_) planes_to_lanes(saved + offset, area, count_, pixels, saved_);
        backward_row(pool_, g_, saved_, none, g_, pixels * kV);
        return;
      }
      const int64_t offset = (n_ * area + rows.g.first * Q) * pool_.channels + first_;
      const bool adjacent = count_ == pool_.channels;
      if (c_.t_.dw && adjacent) {
        // dw's sums walk it channels by channels: too far apart for the hardware to foresee
        const float* end = x + rows.x.last * p_.width * count_;
        for (const float* line = x + rows.x.first * p_.width * count_; line < end; line += 16) {
          __builtin_prefetch(line, 0, 2);
        }
      }
      const int64_t runs = adjacent ? 1 : pixels;
      const int64_t run = adjacent ? pixels * count_ : count_;
      for (int64_t i = 0; i < runs; ++i) {
        const int64_t at = offset + i * pool_.channels;
        const float* from = c_.again_ ? saved_ + i * count_ : saved ? saved + at : nullptr;
        backward_row(pool_, dy + at, from, none, g_ + i * count_, run);
      }
    }

    // The convolution's output with its bias, at g's rows.
    void outputs_again(const BandRows& rows, const float* x) {
      const PixelKernel kernel =
          c_.filter_.kernel(c_.lanes_, first_, pixel_, no_activation(), false);
      convolve(kernel, x, rows.g, saved_, pool_.width * pixel_);
    }

    // Rows `rows` of what `kernel` gives; `target`: the first of them.
    void convolve(const PixelKernel& kernel, const float* x, Range rows, float* target,
                  int64_t row) const {
      const PixelLoops loops = pixel_loops(kernel.p, kernel.group);
      const int64_t channels = in_place_ ? count_ : kV;
      for (int64_t h = rows.first; h < rows.last; h += kTileRows) {
        const int down = rows.last - h < kTileRows ? 1 : kTileRows;
        pixel_rows(kernel, loops, PixelRows{x, target + (h - rows.first) * row, h, down},
                   Range{0, kernel.p.pool.width}, channels);
      }
    }

    void input_gradient(const BandRows& rows) {
      float* dx = static_cast<float*>(c_.t_.dx);
      const int64_t area = p_.height * p_.width;
      const int64_t step = in_place_ ? p_.in_channels : kV;
      const int64_t first = rows.dx.first * p_.width;
      float* target = in_place_ ? dx + (n_ * area + first) * p_.in_channels + first_ : dx_;
      if (has_phases(p_)) {
        const PhaseKernel kernel = {p_,       g_base(rows), pixel_,         c_.filter_.taps(first_),
                                    c_.step_, step,         c_.past_caches_};
        phase_rows(kernel, rows.dx, target, in_place_ ? count_ : kV);
      } else {
        turned_rows(rows, target, step);
      }
      if (in_place_) return;
      lanes_to_planes(dx_, area, count_, (rows.dx.last - rows.dx.first) * p_.width,
                      dx + (n_ * p_.in_channels + first_) * area + first);
    }

    // dx by the turned filter.
    void turned_rows(const BandRows& rows, float* target, int64_t step) {
      ConvActPool2dProblem wide = c_.wide_;
      wide.in_channels = wide.image_channels = pixel_;
      const float* source = g_base(rows);
      if (strided()) source = spread(rows) - rows.wide.first * wide.width * pixel_;
      const PixelKernel kernel =
          c_.turned_.kernel(wide, first_, step, no_activation(), c_.past_caches_);
      convolve(kernel, source, rows.dx, target, p_.width * step);
    }

    // g with zeros between its pixels: rows.wide.
    const float* spread(const BandRows& rows) {
      const int64_t width = c_.wide_.width;
      const int64_t row = width * pixel_;
      for (int64_t e = rows.wide.first; e < rows.wide.last; ++e) {
        float* target = wide_ + (e - rows.wide.first) * row;
        for (int64_t i = 0; i < row; ++i) target[i] = 0.0f;
        if (e % p_.stride_height != 0) continue;
        const float* source = g_base(rows) + e / p_.stride_height * pool_.width * pixel_;
        for (int64_t q = 0; q < pool_.width; ++q) {
          for (int64_t c = 0; c < pixel_; ++c) {
            target[q * p_.stride_width * pixel_ + c] = source[q * pixel_ + c];
          }
        }
      }
      return wide_;
    }

    const Backward& c_;
    const ConvActPool2dProblem& p_;
    const ActPool2dProblem& pool_;
    bool in_place_;          // NHWC: x and dx are not copied
    int64_t g_size_ = 0;     // pixels
    int64_t x_size_ = 0;     // likewise
    int64_t dx_size_ = 0;    // likewise
    int64_t wide_size_ = 0;  // likewise
    Scratch<float> scratch_;
    float* g_ = nullptr;
    float* saved_ = nullptr;
    float* wide_ = nullptr;
    float* x_ = nullptr;
    float* dx_ = nullptr;
    // of the unit that is worked on
    int64_t n_ = 0;
    int64_t first_ = 0;  // channel
    int count_ = 0;      // of channels
    int64_t pixel_ = 0;  // elements from a pixel of g to the next
  };

  // dw and dbias: the slices' sums, in order.
  void add_slices() const {
    float* dw = static_cast<float*>(t_.dw);
    float* dbias = static_cast<float*>(t_.dbias);
    const int64_t size = (taps_ + 1) * step_;
    for (int64_t slice = 1; slice < cut_.slices; ++slice) {
      const float* other = sums_.data + slice * size;
      for (int64_t i = 0; i < size; ++i) sums_.data[i] += other[i];
    }
    for (int64_t k = 0; k < p_.pool.channels; ++k) {
      for (int64_t tap = 0; dw && tap < taps_; ++tap) {
        dw[k * taps_ + tap] = sums_.data[tap * step_ + k];
      }
      if (dbias) dbias[k] = sums_.data[taps_ * step_ + k];
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const Cut cut_;
  const int64_t step_;  // channels, rounded up to whole vectors
  const int64_t taps_;
  const bool again_;  // whether the derivative wants the convolution's output
  DepthwiseFilter turned_;
  DepthwiseFilter filter_;
  ConvActPool2dProblem wide_;   // g with zeros between -> dx
  ConvActPool2dProblem lanes_;  // p_ as the loops of the forward convolution want it
  bool past_caches_;
  Scratch<float> sums_;  // [slices][R, S and one for dbias][step]
};

}  // namespace

bool depthwise_backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  return Backward(p, t).run(threads);
}

}  // namespace CMF_ISA
}  // namespace cmf

// The gradients of a 1x1 convolution with what follows it: chunks of pixels, whose gradient is
// expanded a panel of output channels at a time and used for all three while it is in the caches.
#include <string.h>

#include "cpu/gradient_frame.h"
#include "cpu/groups.h"
#include "cpu/parts.h"
#include "cpu/pointwise.h"
#include "cpu/pointwise_chunks.h"
#include "cpu/pointwise_gradient_tile.h"
#include "cpu/pointwise_pack.h"
#include "cpu/pointwise_spread.h"
#include "cpu/pointwise_tile.h"
#include "cpu/scratch.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;
constexpr int64_t kLargeBytes = INT64_C(1) << 23;  // stored past the caches
constexpr int64_t kProductsPerThread = INT64_C(1) << 18;

class Backward {
 public:
  Backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t)
      : p_(p),
        t_(t),
        channels_(round_up(p.in_channels, kV)),
        filters_(round_up(p.pool.channels, kV)),
        chunks_(p, channels_, filters_),
        pixels_are_rows_(p.x_channels_last || !fills_columns(chunks_.rows * p.pool.width)),
        strided_(p.stride_height != 1 || p.stride_width != 1) {
    const int64_t run = p.x_channels_last ? p.in_channels : p.width;
    past_caches_ = !strided_ && pixels_are_rows_ == p.x_channels_last && run % kLineFloats == 0 &&
                   (!p.x_channels_last || p.image_channels % kLineFloats == 0) &&
                   reinterpret_cast<uintptr_t>(t.dx) % CMF_VECTOR_BYTES == 0 &&
                   p.pool.batch * p.image_channels * p.height * p.width * 4 > kLargeBytes;
  }

  bool run(int threads) {
    const int64_t pixels = p_.pool.batch * p_.pool.height * p_.pool.width;
    const int64_t most = 2 * pixels * p_.pool.channels * p_.in_channels / kProductsPerThread;
    if (threads > most) threads = most < 2 ? 1 : static_cast<int>(most);
    if (t_.dx) {
      if (!weights_.allocate(round_up(p_.in_channels, kTileLanes) * filters_)) return false;
      pack_turned_weights(p_, static_cast<const float*>(t_.w), pixels_are_rows_, weights_.data,
                          threads);
    }
    const int64_t sums = sums_size() * chunks_.slices;
    if (sums && !sums_.allocate(sums)) return false;
    // One pass, or one for the weights' gradient by groups of filters and one for the input's.
    const bool apart = chunks_.groups > 1 && sums != 0 && t_.dx != nullptr;
    const bool success = (!apart || pass(chunks_.count, 1, false, true, threads)) &&
                         pass(chunks_.slices, sums ? chunks_.groups : 1, true, !apart, threads);
    if (success) add_slices(threads);
    return success;
  }

 private:
  bool pass(int64_t slices, int64_t groups, bool sums, bool dx, int threads) {
    return in_parallel(slices * groups, threads, [&](Range units) {
      Worker worker(*this, sums, dx && t_.dx);
      if (!worker.prepare()) return false;
      for (int64_t unit = units.first; unit < units.last; ++unit) {
        const int64_t slice = unit / groups;
        const Range panels = part_of(divide_up(filters_, kTileLanes),
                                     static_cast<int>(unit % groups), static_cast<int>(groups));
        worker.run(
            part_of(chunks_.count, static_cast<int>(slice), static_cast<int>(slices)),
            Range{panels.first * kTileLanes, least(panels.last * kTileLanes, p_.pool.channels)},
            sums ? sums_.data + slice * sums_size() : nullptr);
      }
      if (past_caches_) fence_streams();
      return true;
    });
  }

  // Of a slice: dw [filters_][channels_], then dbias [filters_].
  int64_t bias_offset() const { return t_.dw ? filters_ * channels_ : 0; }
  int64_t sums_size() const { return bias_offset() + (t_.dbias ? filters_ : 0); }

  // One thread's scratch memory, and what it does with a chunk.
  class Worker {
   public:
    Worker(const Backward& call, bool sums, bool dx)
        : c_(call),
          dx_wanted_(dx),
          dw_wanted_(sums && call.t_.dw),
          dbias_wanted_(sums && call.t_.dbias),
          p_(call.p_),
          pool_(call.p_.pool),
          lanes_(pool_.channels > kV ? kTileLanes : kV),
          most_(call.chunks_.images * call.chunks_.rows * pool_.width),
          frame_(call.p_, call.t_, call.chunks_.rows, pool_.width, 0, lanes_) {}

    bool prepare() {
      if (!frame_.prepare() || (dw_wanted_ && !x_.allocate(most_ * c_.channels_))) return false;
      if (c_.chunks_.images > 1 && !g_.allocate(most_ * lanes_)) return false;
      if (!dx_wanted_) return true;
      const bool spreads = c_.strided_ || c_.pixels_are_rows_ != p_.x_channels_last;
      if (spreads && !dx_.allocate(most_ * p_.in_channels + kV)) return false;
      const int64_t area = c_.chunks_.rows * pool_.width;
      columns_ = divide_up(area, kTileLanes);
      return packed_.allocate(c_.pixels_are_rows_
                                  ? most_ * c_.filters_
                                  : c_.chunks_.images * columns_ * kTileLanes * c_.filters_);
    }

    // Output channels `filters` of `chunks`; sums: the slice's.
    void run(Range chunks, Range filters, float* sums) {
      clear(sums, filters);
      for (int64_t chunk = chunks.first; chunk < chunks.last; ++chunk) {
        const int64_t images = c_.chunks_.images, bands = c_.chunks_.bands;
        n_ = chunk / bands * images;
        images_ = least(images, pool_.batch - n_);
        rows_ = part_of(pool_.height, static_cast<int>(chunk % bands), static_cast<int>(bands));
        area_ = (rows_.last - rows_.first) * pool_.width;
        work(filters, sums);
      }
    }

   private:
    int64_t pixels() const { return images_ * area_; }

    void clear(float* sums, Range filters) const {
      const int64_t count = round_up(filters.last, kV) - filters.first;
      const auto clear_all = [](float* from, int64_t floats) {
        memset(from, 0, static_cast<size_t>(floats) * sizeof(float));
      };
      if (dw_wanted_) clear_all(sums + filters.first * c_.channels_, count * c_.channels_);
      if (dbias_wanted_) clear_all(sums + c_.bias_offset() + filters.first, count);
    }

    void work(Range filters, float* sums) {
      const int64_t first = (n_ * pool_.height + rows_.first) * pool_.width;
      if (dw_wanted_) {
        pack_tile(p_, plain(static_cast<const float*>(c_.t_.x)), Range{first, first + pixels()},
                  x_.data);
      }
      for (int64_t k = filters.first; k < filters.last; k += lanes_) {
        const float* g = expand(k, dbias_wanted_ ? sums + c_.bias_offset() + k : nullptr);
        if (dw_wanted_) weight_gradient(g, k, sums);
        if (dx_wanted_ && c_.pixels_are_rows_) pack_rows(g, k);
        if (dx_wanted_ && !c_.pixels_are_rows_) pack_columns_of(g, k);
      }
      if (!dx_wanted_) return;
      if (c_.pixels_are_rows_) {
        input_pixels();
      } else {
        for (int64_t image = 0; image < images_; ++image) input_planes(image);
      }
    }

    // The gradient [pixels][lanes_] of output channels k .. k + lanes_ - 1.
    const float* expand(int64_t k, float* bias_sums) {
      const int64_t left = pool_.channels - k;
      const int count = left < lanes_ ? static_cast<int>(left) : lanes_;
      for (int64_t image = 0; image < images_; ++image) {
        frame_.fill(n_ + image, rows_.first, rows_.last - rows_.first, k, count);
        if (bias_sums) {
          float total[kTileLanes];
          frame_.sum_rows(rows_.first, rows_.last, total);
          for (int i = 0; i < count; ++i) bias_sums[i] += total[i];
        }
        if (c_.chunks_.images == 1) return frame_.at(rows_.first, 0);
        memcpy(g_.data + image * area_ * lanes_, frame_.at(rows_.first, 0),
               static_cast<size_t>(area_ * lanes_) * sizeof(float));
      }
      return g_.data;
    }

    void weight_gradient(const float* g, int64_t k, float* sums) const {
      PixelProducts products;
      products.g_step = lanes_;
      products.pixels = pixels();
      products.sums_step = c_.channels_;
      for (int64_t c = 0; c < c_.channels_; c += 2 * kV) {
        products.x = x_.data + c * products.pixels;
        for (int row = 0; row < lanes_ && k + row < pool_.channels; row += kPixelProductRows) {
          products.g = g + row;
          products.sums = sums + (k + row) * c_.channels_ + c;
          pixel_products(products, c_.channels_ - c > kV ? 2 : 1);
        }
      }
    }

    // What is broadcast: pixels, tile by tile [K / kLanes][rows][kLanes].
    void pack_rows(const float* g, int64_t k) {
      const TileRows rows = {pixels()};
      for (int i = 0; i < rows.tiles(); ++i) {
        const Range tile = rows.tile(i);
        const int64_t count = tile.last - tile.first;
        for (int v = 0; v < lanes_ && k + v < c_.filters_; v += kV) {
          float* target = packed_.data + tile.first * c_.filters_ + (k + v) * count;
          for (int64_t j = 0; j < count; ++j) {
            store<float>(target + j * kV, load<float>(g + (tile.first + j) * lanes_ + v));
          }
        }
      }
    }

    // What is not: [pixels / kTileLanes][K][kTileLanes], image by image.
    void pack_columns_of(const float* g, int64_t k) {
      for (int64_t image = 0; image < images_; ++image) {
        for (int64_t i = 0; i < area_; i += kV) {
          float* panel = columns(image, i / kTileLanes) + i % kTileLanes;
          for (int v = 0; v < lanes_ && k + v < c_.filters_; v += kV) {
            V block[kV];
            for (int j = 0; j < kV; ++j) {
              const float* source = g + (image * area_ + i + j) * lanes_ + v;
              block[j] = i + j < area_ ? load<float>(source) : V{};
            }
            transpose_block<float>(block);
            for (int j = 0; j < kV; ++j) store<float>(panel + (k + v + j) * kTileLanes, block[j]);
          }
        }
      }
    }

    float* columns(int64_t image, int64_t panel) const {
      return packed_.data + (image * columns_ + panel) * kTileLanes * c_.filters_;
    }

    PointwiseTile tile() const {
      static const float zeros[kTileLanes] = {};
      PointwiseTile tile;
      tile.channels = pool_.channels;
      tile.row_bias = nullptr;
      tile.bias = zeros;
      tile.act = no_activation();
      tile.past_caches = c_.past_caches_;
      tile.ahead = nullptr;
      tile.ahead_step = tile.ahead_count = 0;
      return tile;
    }

    // Where x begins that the next chunk packs: it comes into the second cache meanwhile. Null
    // where it is not wanted.
    const float* next_x() const {
      if (!dw_wanted_ || c_.strided_ || c_.pixels_are_rows_ != p_.x_channels_last) return nullptr;
      if (p_.image_channels != p_.in_channels) return nullptr;
      const int64_t area = p_.height * p_.width, C = p_.in_channels;
      const float* x = static_cast<const float*>(c_.t_.x);
      if (n_ + images_ == pool_.batch && rows_.last == pool_.height) return nullptr;
      if (rows_.last == pool_.height) return x + (n_ + images_) * area * C;
      return x + n_ * area * C + rows_.last * p_.width * (p_.x_channels_last ? C : 1);
    }

    // dx, pixels being rows: of all images at once.
    void input_pixels() {
      const int64_t C = p_.in_channels, size = p_.height * p_.width * p_.image_channels;
      const bool in_place = !c_.strided_ && p_.x_channels_last;
      float* dx = static_cast<float*>(c_.t_.dx) + n_ * size;
      PointwiseTile part = tile();
      part.y_row = in_place ? p_.image_channels : C;
      float* y = in_place ? dx + rows_.first * p_.width * part.y_row : dx_.data;
      const TileRows rows = {pixels()};
      part.ahead = next_x();
      part.ahead_step = 2 * kV;
      const int64_t blocks = c_.filters_ / kV;
      const int64_t calls = divide_up(C, kTileLanes) * rows.tiles() * blocks;
      part.ahead_count = part.ahead ? static_cast<int>(divide_up(pixels() * C, 2 * kV * calls)) : 0;
      for (int64_t c = 0; c < C; c += kTileLanes) {
        part.columns = C - c < kTileLanes ? static_cast<int>(C - c) : kTileLanes;
        part.b = c_.weights_.data + c * pool_.channels;
        for (int i = 0; i < rows.tiles(); ++i) {
          const Range range = rows.tile(i);
          part.a = packed_.data + range.first * c_.filters_;
          part.y = y + range.first * part.y_row + c;
          pointwise_kernel_for(static_cast<int>(range.last - range.first),
                               part.columns > kV ? 2 : 1)(part);
          if (part.ahead) part.ahead += blocks * part.ahead_count * part.ahead_step;
        }
      }
      for (int64_t image = 0; image < images_ && !in_place; ++image) {
        const float* source = dx_.data + image * area_ * C;
        if (!c_.strided_) {
          pixels_to_planes(source, C, area_, p_.height * p_.width,
                           dx + image * size + rows_.first * p_.width);
        } else if (p_.x_channels_last) {
          spread(source, C, C, dx + image * size);
        } else {
          for (int64_t c = 0; c < C; ++c) {
            spread(source + c, C, 1, dx + image * size + c * p_.height * p_.width);
          }
        }
      }
    }

    // dx, pixels being columns: of one image, NCHW.
    void input_planes(int64_t image) {
      const int64_t plane = p_.height * p_.width;
      float* dx = static_cast<float*>(c_.t_.dx) + (n_ + image) * p_.image_channels * plane;
      PointwiseTile part = tile();
      part.y_row = c_.strided_ ? area_ : plane;
      float* y = c_.strided_ ? dx_.data : dx + rows_.first * p_.width;
      const TileRows rows = {p_.in_channels};
      const float* ahead = next_x();
      part.ahead_step = plane;
      // a few planes at a time: more are more streams than the hardware follows
      for (int j = 0; j < rows.tiles(); ++j) {
        const Range range = rows.tile(j);
        part.a = c_.weights_.data + range.first * c_.filters_;
        part.ahead_count =
            ahead ? static_cast<int>(divide_up(range.last - range.first, c_.filters_ / kV)) : 0;
        for (int64_t i = 0; i < area_; i += kTileLanes) {
          part.columns = area_ - i < kTileLanes ? static_cast<int>(area_ - i) : kTileLanes;
          part.b = columns(image, i / kTileLanes);
          part.y = y + range.first * part.y_row + i;
          part.ahead = ahead ? ahead + range.first * plane + i : nullptr;
          pointwise_kernel_for(static_cast<int>(range.last - range.first),
                               part.columns > kV ? 2 : 1)(part);
        }
      }
      for (int64_t c = 0; c < p_.in_channels && c_.strided_; ++c) {
        spread(dx_.data + c * area_, 1, 1, dx + c * plane);
      }
    }

    void spread(const float* source, int64_t step, int64_t channels, float* dx) const {
      spread_pixels(p_, rows_, source, step, channels, dx);
    }

    const Backward& c_;
    const bool dx_wanted_;
    const bool dw_wanted_;
    const bool dbias_wanted_;
    const ConvActPool2dProblem& p_;
    const ActPool2dProblem& pool_;
    const int lanes_;      // of a panel of output channels
    const int64_t most_;   // pixels in a chunk
    int64_t columns_ = 0;  // panels of an image's pixels
    GradientFrame frame_;
    Scratch<float> x_;       // [C / kLanes][pixels][kLanes]
    Scratch<float> g_;       // [pixels][lanes_], of several images
    Scratch<float> packed_;  // the gradient of all channels, as the input gradient wants it
    Scratch<float> dx_;      // with a stride: [pixels][C] or [C][pixels of an image]
    // the chunk that is worked on
    int64_t n_ = 0;
    int64_t images_ = 0;
    Range rows_ = {0, 0};
    int64_t area_ = 0;  // pixels of an image
  };

  // dw and dbias: the slices' sums, in order.
  void add_slices(int threads) const {
    const int64_t C = p_.in_channels, K = p_.pool.channels;
    const int64_t size = sums_size();
    const auto add = [&](int64_t offset, int64_t count, float* target) {
      for (int64_t i = 0; i < count; i += kV) {
        V sum = load<float>(sums_.data + offset + i);
        for (int64_t slice = 1; slice < chunks_.slices; ++slice) {
          sum += load<float>(sums_.data + slice * size + offset + i);
        }
        store_lanes<float>(target + i, sum, count - i < kV ? static_cast<int>(count - i) : kV);
      }
    };
    if (t_.dbias) add(bias_offset(), K, static_cast<float*>(t_.dbias));
    if (!t_.dw) return;
    in_parallel(K, K * C < 65536 ? 1 : threads, [&](Range filters) {
      for (int64_t k = filters.first; k < filters.last; ++k) {
        add(k * channels_, C, static_cast<float*>(t_.dw) + k * C);
      }
      return true;
    });
  }

  const ConvActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const int64_t channels_;  // C and K, rounded up to whole vectors
  const int64_t filters_;
  const Chunks chunks_;
  const bool pixels_are_rows_;  // where the input gradient is computed; or the input's channels
  const bool strided_;
  bool past_caches_;
  Scratch<float> weights_;
  Scratch<float> sums_;  // [slices][sums_size()]
};

}  // namespace

bool pointwise_backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  const Groups groups(p);
  const bool success = groups.each(threads, [&](int64_t g, int threads_of_group) {
    const ConvBackwardTensors of_group = groups.tensors(t, g);
    return Backward(groups.problem(), of_group).run(threads_of_group);
  });
  if (t.dw_spoilt) *t.dw_spoilt = false;
  return success;
}

}  // namespace CMF_ISA
}  // namespace cmf

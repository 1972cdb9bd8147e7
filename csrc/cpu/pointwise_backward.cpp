// The gradients of a 1x1 convolution with what follows it: chunks of pixels, whose gradient is
// expanded a panel of output channels at a time and used for all three while it is in the caches.
#include <string.h>

#include "cpu/gradient_frame.h"
#include "cpu/parts.h"
#include "cpu/pointwise.h"
#include "cpu/pointwise_gradient_tile.h"
#include "cpu/pointwise_pack.h"
#include "cpu/pointwise_tile.h"
#include "cpu/scratch.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;
constexpr int64_t kLargeBytes = INT64_C(1) << 23;  // stored past the caches
// A chunk's x and gradient: beside weights in the second cache.
constexpr int64_t kChunkBytes = INT64_C(3) << 17;
constexpr int64_t kLeastPixels = 112;  // or the weight gradient's sums would be loaded too often
constexpr int64_t kMostPixels = 512;
// A weight gradient that stays in the second cache; larger ones are computed in groups of filters.
constexpr int64_t kSumBytes = INT64_C(1) << 18;
constexpr int64_t kUnits = 16;  // slices · groups, about
constexpr int64_t kProductsPerThread = INT64_C(1) << 18;

// How the pixels of the convolution's output are cut: chunks of rows of an image, or of several
// images where those are small. Slices of chunks have sums of their own, whatever the threads; so
// have groups of filters.
struct Chunks {
  int64_t images;  // in a chunk
  int64_t bands;   // of rows, in an image
  int64_t rows;    // in a band, at most
  int64_t count;
  int64_t slices;
  int64_t groups;

  Chunks(const ConvActPool2dProblem& p, int64_t channels, int64_t filters) {
    const ActPool2dProblem& pool = p.pool;
    const int64_t fitting = kChunkBytes / 4 / (channels + filters);
    const int64_t pixels = fitting < kLeastPixels ? kLeastPixels : least(fitting, kMostPixels);
    const int64_t area = pool.height * pool.width;
    images = area > pixels ? 1 : least(pixels / area, pool.batch);
    const int64_t most = pixels < pool.width ? 1 : least(pixels / pool.width, pool.height);
    bands = divide_up(pool.height, most);
    rows = divide_up(pool.height, bands);
    count = divide_up(pool.batch, images) * bands;
    const int64_t together = cmf::CMF_ISA::most(kSumBytes / 4 / channels / kTileLanes, 1);
    groups = divide_up(filters, together * kTileLanes);
    slices = least(divide_up(kUnits, groups), count);
  }
};

class Backward {
 public:
  Backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t)
      : p_(p),
        t_(t),
        channels_(round_up(p.in_channels, kV)),
        filters_(round_up(p.pool.channels, kV)),
        chunks_(p, channels_, filters_),
        strided_(p.stride_height != 1 || p.stride_width != 1) {
    const int64_t run = p.x_channels_last ? p.in_channels : p.width;
    past_caches_ = !strided_ && run % kV == 0 &&
                   reinterpret_cast<uintptr_t>(t.dx) % CMF_VECTOR_BYTES == 0 &&
                   p.pool.batch * p.in_channels * p.height * p.width * 4 > kLargeBytes;
  }

  bool run(int threads) {
    const int64_t pixels = p_.pool.batch * p_.pool.height * p_.pool.width;
    const int64_t most = 2 * pixels * p_.pool.channels * p_.in_channels / kProductsPerThread;
    if (threads > most) threads = most < 2 ? 1 : static_cast<int>(most);
    if (t_.dx && !prepare_weights(threads)) return false;
    const int64_t sums = sums_size() * chunks_.slices;
    if (sums && !sums_.allocate(sums)) return false;
    // One pass, or one for the weights' gradient by groups of filters and one for the input's.
    const bool apart = chunks_.groups > 1 && sums != 0 && t_.dx != nullptr;
    const bool success = (!apart || pass(chunks_.count, 1, false, true, threads)) &&
                         pass(chunks_.slices, sums ? chunks_.groups : 1, true, !apart, threads);
    if (success) add_slices(threads);
    if (t_.dw_spoilt) *t_.dw_spoilt = false;
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

  // The weights as the input gradient's tiles want them: w's rows in panels [C / kTileLanes][K]
  // [kTileLanes], or its columns as rows tile by tile [K / kLanes][rows][kLanes].
  bool prepare_weights(int threads) {
    const int64_t C = p_.in_channels, K = p_.pool.channels;
    const float* w = static_cast<const float*>(t_.w);
    if (!weights_.allocate(round_up(C, kTileLanes) * filters_)) return false;
    if (K * C < 65536) threads = 1;
    if (p_.x_channels_last) {
      return in_parallel(divide_up(C, kTileLanes), threads, [&](Range panels) {
        for (int64_t c = panels.first * kTileLanes; c < panels.last * kTileLanes; c += kV) {
          const int lanes = C - c < kV ? (C > c ? static_cast<int>(C - c) : 0) : kV;
          float* target = weights_.data + c / kTileLanes * kTileLanes * K + c % kTileLanes;
          for (int64_t k = 0; k < K; ++k, target += kTileLanes) {
            store<float>(target, lanes ? load_lanes<float>(w + k * C + c, lanes) : V{});
          }
        }
        return true;
      });
    }
    const TileRows rows = {C};
    return in_parallel(rows.tiles(), threads, [&](Range tiles) {
      for (int64_t i = tiles.first; i < tiles.last; ++i) {
        const Range tile = rows.tile(static_cast<int>(i));
        const int64_t count = tile.last - tile.first;
        float* target = weights_.data + tile.first * filters_;
        for (int64_t k = 0; k < filters_; ++k) {
          float* place = target + k / kV * kV * count + k % kV;
          for (int64_t j = 0; j < count; ++j) {
            place[j * kV] = k < K ? w[k * C + tile.first + j] : 0.0f;
          }
        }
      }
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
      if (c_.strided_ && !dx_.allocate(most_ * p_.in_channels)) return false;
      const int64_t area = c_.chunks_.rows * pool_.width;
      columns_ = divide_up(area, kTileLanes);
      return packed_.allocate(p_.x_channels_last
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
        pack_tile(p_, static_cast<const float*>(c_.t_.x), Range{first, first + pixels()}, x_.data);
      }
      for (int64_t k = filters.first; k < filters.last; k += lanes_) {
        const float* g = expand(k, dbias_wanted_ ? sums + c_.bias_offset() + k : nullptr);
        if (dw_wanted_) weight_gradient(g, k, sums);
        if (dx_wanted_ && p_.x_channels_last) pack_rows(g, k);
        if (dx_wanted_ && !p_.x_channels_last) pack_columns_of(g, k);
      }
      if (!dx_wanted_) return;
      for (int64_t image = 0; image < images_; ++image) {
        if (p_.x_channels_last) {
          if (image == 0 || c_.strided_) input_pixels(image);
        } else {
          input_planes(image);
        }
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
      tile.b_step = kTileLanes;
      tile.channels = pool_.channels;
      tile.row_bias = nullptr;
      tile.bias = zeros;
      tile.act = no_activation();
      tile.past_caches = c_.past_caches_;
      tile.ahead = nullptr;
      tile.ahead_step = tile.ahead_count = 0;
      return tile;
    }

    // dx in NHWC: of all images at once, or of one with a stride.
    void input_pixels(int64_t image) {
      const int64_t C = p_.in_channels;
      float* dx = static_cast<float*>(c_.t_.dx) + (n_ + image) * p_.height * p_.width * C;
      PointwiseTile part = tile();
      part.y_row = C;
      const TileRows rows = {pixels()};
      for (int64_t c = 0; c < C && (image == 0 || !c_.strided_); c += kTileLanes) {
        part.columns = C - c < kTileLanes ? static_cast<int>(C - c) : kTileLanes;
        part.b = c_.weights_.data + c * pool_.channels;
        for (int i = 0; i < rows.tiles(); ++i) {
          const Range range = rows.tile(i);
          part.a = packed_.data + range.first * c_.filters_;
          part.y = (c_.strided_ ? dx_.data : dx + rows_.first * p_.width * C) + range.first * C + c;
          pointwise_kernel_for(static_cast<int>(range.last - range.first),
                               part.columns > kV ? 2 : 1)(part);
        }
      }
      if (!c_.strided_) return;
      const Range wide = rows_of_x();
      memset(dx + wide.first * p_.width * C, 0,
             static_cast<size_t>((wide.last - wide.first) * p_.width * C) * sizeof(float));
      for (int64_t i = 0; i < area_; ++i) {
        const int64_t h = (rows_.first + i / pool_.width) * p_.stride_height;
        memcpy(dx + (h * p_.width + i % pool_.width * p_.stride_width) * C,
               dx_.data + (image * area_ + i) * C, static_cast<size_t>(C) * sizeof(float));
      }
    }

    // dx in NCHW, of one image.
    void input_planes(int64_t image) {
      const int64_t plane = p_.height * p_.width;
      float* dx = static_cast<float*>(c_.t_.dx) + (n_ + image) * p_.in_channels * plane;
      PointwiseTile part = tile();
      part.y_row = c_.strided_ ? area_ : plane;
      float* y = c_.strided_ ? dx_.data : dx + rows_.first * p_.width;
      const TileRows rows = {p_.in_channels};
      // a few planes at a time: more are more streams than the hardware follows
      for (int j = 0; j < rows.tiles(); ++j) {
        const Range range = rows.tile(j);
        part.a = c_.weights_.data + range.first * c_.filters_;
        for (int64_t i = 0; i < area_; i += kTileLanes) {
          part.columns = area_ - i < kTileLanes ? static_cast<int>(area_ - i) : kTileLanes;
          part.b = columns(image, i / kTileLanes);
          part.y = y + range.first * part.y_row + i;
          pointwise_kernel_for(static_cast<int>(range.last - range.first),
                               part.columns > kV ? 2 : 1)(part);
        }
      }
      if (!c_.strided_) return;
      const Range wide = rows_of_x();
      for (int64_t c = 0; c < p_.in_channels; ++c) {
        float* target = dx + c * plane;
        memset(target + wide.first * p_.width, 0,
               static_cast<size_t>((wide.last - wide.first) * p_.width) * sizeof(float));
        for (int64_t i = 0; i < area_; ++i) {
          const int64_t h = (rows_.first + i / pool_.width) * p_.stride_height;
          target[h * p_.width + i % pool_.width * p_.stride_width] = dx_.data[c * area_ + i];
        }
      }
    }

    // The rows of x that belong to this chunk: those behind a row of z, too.
    Range rows_of_x() const {
      return Range{rows_.first * p_.stride_height,
                   rows_.last < pool_.height ? rows_.last * p_.stride_height : p_.height};
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
  const bool strided_;
  bool past_caches_;
  Scratch<float> weights_;
  Scratch<float> sums_;  // [slices][sums_size()]
};

}  // namespace

bool pointwise_backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  return Backward(p, t).run(threads);
}

}  // namespace CMF_ISA
}  // namespace cmf

// The gradients of a convolution from that of its output, both NHWC. The input's is a convolution
// of the gradient with the filters turned round, one for every phase of the stride; the weights'
// are products of the gradient and the patches, a few columns of the patches at a time.
#include <string.h>

#include "cpu/patches.h"
#include "cpu/patches_pack.h"
#include "cpu/pointwise_gradient_tile.h"
#include "cpu/row_products.h"
#include "cpu/turn_matrix.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
// Whose columns of patches stay in the first cache, while the sums are loaded seldom enough.
constexpr int64_t kChunkPixels = 112;
constexpr int64_t kUnits = 16;  // of the weight gradient, about

// One axis of a phase: every stride-th pixel of x from `first` on, and the taps that reach them.
struct PhaseAxis {
  PhaseAxis(int64_t first_, int64_t length, int64_t taps_, int64_t stride, int64_t pad,
            int64_t dilation)
      : first(first_),
        pixels(first < length ? divide_up(length - first, stride) : 0),
        tap((first + pad) % stride),
        taps(tap < taps_ ? divide_up(taps_ - tap, stride) : 0),
        before(dilation * (taps - 1) - (first + pad - tap) / stride) {}

  bool has(int64_t t, int64_t stride) const { return t >= tap && (t - tap) % stride == 0; }
  // Which of the taps, turned round, `t` is.
  int64_t turned(int64_t t, int64_t stride) const { return taps - 1 - (t - tap) / stride; }

  int64_t first;
  int64_t pixels;
  int64_t tap;  // the first that reaches them, and every stride-th after it
  int64_t taps;
  int64_t before;  // the padding of the gradient; negative where some of it is not seen
};

class InputGradient {
 public:
  InputGradient(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads)
      : p_(p), t_(t), threads_(threads) {}

  bool run() {
    const int64_t C = p_.in_channels;
    if (!weights_.allocate(round_up(C, kTileLanes) * p_.pool.channels * p_.kernel_height *
                           p_.kernel_width)) {
      return false;
    }
    if (p_.stride_height > p_.kernel_height || p_.stride_width > p_.kernel_width) {
      memset(t_.dx, 0,
             sizeof(float) * static_cast<size_t>(p_.pool.batch * C * p_.height * p_.width));
    }
    pack();
    int64_t offset = 0;
    for (int64_t a = 0; a < p_.stride_height; ++a) {
      for (int64_t b = 0; b < p_.stride_width; ++b) {
        if (!run_phase(rows(a), columns(b), weights_.data + offset)) return false;
        offset += rows(a).taps * columns(b).taps * p_.pool.channels * round_up(C, kTileLanes);
      }
    }
    return true;
  }

 private:
  PhaseAxis rows(int64_t first) const {
    return PhaseAxis(first, p_.height, p_.kernel_height, p_.stride_height, p_.pad_height,
                     p_.dilation_height);
  }
  PhaseAxis columns(int64_t first) const {
    return PhaseAxis(first, p_.width, p_.kernel_width, p_.stride_width, p_.pad_width,
                     p_.dilation_width);
  }

  // w -> phase by phase [C / kTileLanes][taps][K][kTileLanes], the taps turned round.
  void pack() {
    const int64_t C = p_.in_channels, K = p_.pool.channels;
    const int64_t S = p_.kernel_width, taps = p_.kernel_height * S;
    const float* w = static_cast<const float*>(t_.w);
    in_parallel(K, K * C * taps < kLeastWeights ? 1 : threads_, [&](Range filters) {
      for (int64_t c = 0; c < round_up(C, kTileLanes); c += kV) {
        const int lanes = static_cast<int>(most(least(C - c, kV), 0));
        for (int64_t tap = 0; tap < taps; tap += kV) {
          const int count = static_cast<int>(least(taps - tap, kV));
          float* targets[kV];
          for (int i = 0; i < count; ++i) targets[i] = target((tap + i) / S, (tap + i) % S, c);
          for (int64_t k = filters.first; k < filters.last; ++k) {
            Vec<float> block[kV];
            if (t_.w_channels_last) {
              for (int i = 0; i < count; ++i) {
                block[i] = lanes ? load_lanes<float>(w + (k * taps + tap + i) * C + c, lanes)
                                 : Vec<float>{};
              }
            } else {
#pragma GCC unroll 16
              for (int i = 0; i < kV; ++i) {
                block[i] = i < lanes ? load_lanes<float>(w + (k * C + c + i) * taps + tap, count)
                                     : Vec<float>{};
              }
              transpose_block<float>(block);
            }
            for (int i = 0; i < count; ++i) {
              store<float>(targets[i] + k * kTileLanes, block[i]);
            }
          }
        }
      }
      return true;
    });
  }

  // Where the packed weights of a tap and of channels c .. begin.
  float* target(int64_t r, int64_t s, int64_t c) const {
    const int64_t K = p_.pool.channels, step = round_up(p_.in_channels, kTileLanes);
    int64_t offset = 0;
    for (int64_t a = 0; a < p_.stride_height; ++a) {
      for (int64_t b = 0; b < p_.stride_width; ++b) {
        const PhaseAxis high = rows(a), wide = columns(b);
        if (high.has(r, p_.stride_height) && wide.has(s, p_.stride_width)) {
          const int64_t i =
              high.turned(r, p_.stride_height) * wide.taps + wide.turned(s, p_.stride_width);
          return weights_.data + offset +
                 (c / kTileLanes * high.taps * wide.taps + i) * K * kTileLanes + c % kTileLanes;
        }
        offset += high.taps * wide.taps * K * step;
      }
    }
    return nullptr;
  }

  bool run_phase(const PhaseAxis& high, const PhaseAxis& wide, const float* weights) {
    if (high.pixels * wide.pixels * high.taps * wide.taps == 0) return true;
    const int64_t C = p_.in_channels;
    ConvActPool2dProblem p = p_;
    p.in_channels = p.image_channels = p_.pool.channels;
    p.height = p_.pool.height;
    p.width = p_.pool.width;
    p.kernel_height = high.taps;
    p.kernel_width = wide.taps;
    p.stride_height = p.stride_width = 1;
    p.pad_height = high.before;
    p.pad_width = wide.before;
    p.pool.channels = p.pool.image_channels = C;
    p.pool.height = p.pool.out_height = high.pixels;
    p.pool.width = p.pool.out_width = wide.pixels;
    ConvForwardTensors t = {};
    t.x = t_.dy;
    t.prepared = weights;
    t.y = static_cast<float*>(t_.dx) + (high.first * p_.width + wide.first) * C;
    const PixelSteps steps = {p_.stride_width * C, p_.stride_height * p_.width * C,
                              p_.height * p_.width * C};
    const bool strided = p_.stride_height != 1 || p_.stride_width != 1;
    const PatchRuns runs(p);
    const Patches patches(p, static_cast<const float*>(t.x));
    return RowProducts(p, t, patches, RowLength{runs.count, runs.channels, kPackedPatchBytes},
                       threads_, RawFilters{}, strided ? &steps : nullptr)
        .run();
  }

  const ConvActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const int threads_;
  Scratch<float> weights_;
};

// Units of columns of the patches, each by slices of the pixels whose sums are added in order:
// whatever the threads.
class WeightGradient {
 public:
  WeightGradient(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads)
      : p_(p),
        t_(t),
        runs_(p),
        patches_(p, static_cast<const float*>(t.x)),
        pixels_(p.pool.batch * p.pool.height * p.pool.width),
        chunks_(static_cast<int>(divide_up(pixels_, kChunkPixels))),
        panels_of_run_(divide_up(runs_.channels, kTileLanes)),
        panels_(runs_.count * panels_of_run_),
        slices_(least(divide_up(kUnits, panels_), chunks_)),
        filters_(round_up(p.pool.channels, kPixelProductRows)),
        threads_(product_threads(p, runs_.count * runs_.channels, threads)) {}

  bool run() {
    if (!sums_.allocate(slices_ * panels_ * filters_ * kTileLanes)) return false;
    const bool success = in_parallel(slices_ * panels_, threads_, [&](Range units) {
      Scratch<float> columns, gradient;
      if (!columns.allocate(kChunkPixels * kTileLanes) ||
          !gradient.allocate(kChunkPixels * kPixelProductRows)) {
        return false;
      }
      for (int64_t unit = units.first; unit < units.last; ++unit) {
        const Range chunks =
            part_of(chunks_, static_cast<int>(unit / panels_), static_cast<int>(slices_));
        float* sums = sums_.data + unit * filters_ * kTileLanes;
        memset(sums, 0, static_cast<size_t>(filters_ * kTileLanes) * sizeof(float));
        for (int64_t chunk = chunks.first; chunk < chunks.last; ++chunk) {
          add(part_of(pixels_, static_cast<int>(chunk), chunks_), unit % panels_, columns.data,
              gradient.data, sums);
        }
      }
      return true;
    });
    return success && finish();
  }

 private:
  // What some pixels add to a panel of columns, all filters.
  void add(Range pixels, int64_t panel, float* columns, float* gradient, float* sums) const {
    const int64_t K = p_.pool.channels;
    const int64_t first = panel % panels_of_run_ * kTileLanes;
    const int64_t count = least(runs_.channels - first, kTileLanes);
    patches_.pack_columns(pixels, panel / panels_of_run_, Range{first, first + count}, columns);
    PixelProducts products;
    products.x = columns;
    products.pixels = pixels.last - pixels.first;
    products.sums_step = kTileLanes;
    const float* dy = static_cast<const float*>(t_.dy) + pixels.first * K;
    for (int64_t k = 0; k < K; k += kPixelProductRows) {
      products.g = dy + k;
      products.g_step = K;
      if (K - k < kPixelProductRows) {  // of the last pixel nothing lies behind the last filter
        for (int64_t i = 0; i < products.pixels; ++i) {
          for (int64_t j = 0; j < kPixelProductRows; ++j) {
            gradient[i * kPixelProductRows + j] = k + j < K ? dy[i * K + k + j] : 0.0f;
          }
        }
        products.g = gradient;
        products.g_step = kPixelProductRows;
      }
      products.sums = sums + k * kTileLanes;
      pixel_products(products, count > kV ? 2 : 1);
    }
  }

  // dw: the slices' sums, in order, in the weights' format.
  bool finish() const {
    const int64_t C = p_.in_channels, K = p_.pool.channels;
    const int64_t taps = p_.kernel_height * p_.kernel_width;
    return in_parallel(K, K * C * taps < kLeastWeights ? 1 : threads_, [&](Range filters) {
      Scratch<float> row;
      if (!row.allocate(taps * C + kTileLanes)) return false;
      for (int64_t k = filters.first; k < filters.last; ++k) {
        for (int64_t panel = 0; panel < panels_; ++panel) {
          const int64_t first = panel % panels_of_run_ * kTileLanes;
          float* target = row.data + panel / panels_of_run_ * runs_.channels + first;
          for (int64_t i = 0; i < least(runs_.channels - first, kTileLanes); i += kV) {
            Vec<float> sum = load<float>(sums_of(0, panel, k) + i);
            for (int64_t slice = 1; slice < slices_; ++slice) {
              sum += load<float>(sums_of(slice, panel, k) + i);
            }
            store<float>(target + i, sum);
          }
        }
        float* dw = static_cast<float*>(t_.dw) + k * C * taps;
        if (t_.w_channels_last) {
          memcpy(dw, row.data, static_cast<size_t>(C * taps) * sizeof(float));
        } else {
          turn_matrix(row.data, C, taps, C, dw, taps);
        }
      }
      return true;
    });
  }

  const float* sums_of(int64_t slice, int64_t panel, int64_t k) const {
    return sums_.data + ((slice * panels_ + panel) * filters_ + k) * kTileLanes;
  }

  const ConvActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const PatchRuns runs_;
  const Patches patches_;
  const int64_t pixels_;
  const int chunks_;
  const int64_t panels_of_run_;
  const int64_t panels_;  // of columns
  const int64_t slices_;
  const int64_t filters_;  // K, rounded up to whole tiles of products
  const int threads_;
  Scratch<float> sums_;  // [slices][panels][filters_][kTileLanes]
};

// dbias: sums of chunks of pixels, in order.
bool sum_gradient(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  const int64_t K = p.pool.channels, step = round_up(K, kV);
  const int64_t pixels = p.pool.batch * p.pool.height * p.pool.width;
  const int64_t chunks = divide_up(pixels, kChunkPixels);
  Scratch<float> sums;
  if (!sums.allocate(chunks * step)) return false;
  const float* dy = static_cast<const float*>(t.dy);
  in_parallel(chunks, pixels * K < kLeastWeights ? 1 : threads, [&](Range part) {
    for (int64_t chunk = part.first; chunk < part.last; ++chunk) {
      const int64_t first = chunk * kChunkPixels, last = least(first + kChunkPixels, pixels);
      for (int64_t k = 0; k < K; k += kV) {
        const int lanes = static_cast<int>(least(K - k, kV));
        Vec<float> sum = {};
        for (int64_t i = first; i < last; ++i) sum += load_lanes<float>(dy + i * K + k, lanes);
        store<float>(sums.data + chunk * step + k, sum);
      }
    }
    return true;
  });
  for (int64_t k = 0; k < K; k += kV) {
    Vec<float> sum = load<float>(sums.data + k);
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      sum += load<float>(sums.data + chunk * step + k);
    }
    store_lanes<float>(static_cast<float*>(t.dbias) + k, sum, static_cast<int>(least(K - k, kV)));
  }
  return true;
}

}  // namespace

bool patches_backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  if (t.dw_spoilt) *t.dw_spoilt = false;
  if (t.dx && !InputGradient(p, t, threads).run()) return false;
  if (t.dw && !WeightGradient(p, t, threads).run()) return false;
  return !t.dbias || sum_gradient(p, t, threads);
}

}  // namespace CMF_ISA
}  // namespace cmf

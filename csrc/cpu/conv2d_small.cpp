// Direct convolution for problems so small that a library's preparations cost more than the
// arithmetic: one thread, contiguous, stride 1. The input is copied into a frame of zeros, so that
// no loop has edges.
#include "cpu/conv2d_small.h"

#include <stdlib.h>
#include <string.h>

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kFilters = 4;  // filters whose sums are in registers at once
constexpr int kVectors = 2;  // vectors along a row

// Planes [channels, height, width] inside a frame of zeros, and slack behind the last row for whole
// vector loads.
template <class C>
struct Framed {
  C* data = nullptr;
  int64_t height = 0;  // with the frame
  int64_t width = 0;

  bool allocate(int64_t channels, int64_t plain_height, int64_t plain_width, int64_t frame_height,
                int64_t frame_width) {
    height = plain_height + 2 * frame_height;
    width = plain_width + 2 * frame_width;
    const int64_t count = channels * height * width + kVectors * kLanes<C>;
    data = static_cast<C*>(calloc(static_cast<size_t>(count), sizeof(C)));
    return data != nullptr;
  }
  void fill(const C* source, int64_t channels, int64_t frame_height, int64_t frame_width) {
    const int64_t plain_height = height - 2 * frame_height;
    const int64_t plain_width = width - 2 * frame_width;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t h = 0; h < plain_height; ++h) {
        memcpy(data + (c * height + h + frame_height) * width + frame_width, source,
               static_cast<size_t>(plain_width) * sizeof(C));
        source += plain_width;
      }
    }
  }
  ~Framed() { free(data); }
};

// Up to kFilters filters at output row `h`, columns `column` .. column + kVectors vectors - 1.
template <class C, int kCount>
CMF_HOST_DEVICE void filter_block(const Framed<C>& x, const C* w, int64_t channels, int64_t R,
                                  int64_t S, int64_t h, int64_t column, int64_t columns, C* z,
                                  int64_t z_plane, int64_t z_width) {
  Vec<C> sums[kCount][kVectors];
  for (int k = 0; k < kCount; ++k) {
    for (int v = 0; v < kVectors; ++v) sums[k][v] = Vec<C>{};
  }
  const int64_t taps = channels * R * S;
  int64_t tap = 0;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t r = 0; r < R; ++r) {
      const C* row = x.data + (c * x.height + h + r) * x.width + column;
      for (int64_t s = 0; s < S; ++s, ++tap) {
        Vec<C> values[kVectors];
        for (int v = 0; v < kVectors; ++v) values[v] = load<C>(row + s + v * kLanes<C>);
        for (int k = 0; k < kCount; ++k) {
          const Vec<C> weight = broadcast<C>(w[k * taps + tap]);
          for (int v = 0; v < kVectors; ++v) sums[k][v] += weight * values[v];
        }
      }
    }
  }
  for (int k = 0; k < kCount; ++k) {
    C* target = z + k * z_plane + h * z_width + column;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = columns - v * kLanes<C>;
      if (left >= kLanes<C>) {
        store<C>(target + v * kLanes<C>, sums[k][v]);
      } else if (left > 0) {
        store_partial<C>(target + v * kLanes<C>, sums[k][v], static_cast<int>(left));
      }
    }
  }
}

// z [filters, P, Q] = x * w, x framed.
template <class C>
void convolve(const Framed<C>& x, const C* w, int64_t channels, int64_t filters, int64_t R,
              int64_t S, C* z, int64_t P, int64_t Q) {
  const int64_t taps = channels * R * S;
  for (int64_t k = 0; k < filters; k += kFilters) {
    const C* weights = w + k * taps;
    C* target = z + k * P * Q;
    for (int64_t h = 0; h < P; ++h) {
      for (int64_t q = 0; q < Q; q += kVectors * kLanes<C>) {
        const int64_t left = Q - q;
        switch (filters - k) {
          case 1:
            filter_block<C, 1>(x, weights, channels, R, S, h, q, left, target, P * Q, Q);
            break;
          case 2:
            filter_block<C, 2>(x, weights, channels, R, S, h, q, left, target, P * Q, Q);
            break;
          case 3:
            filter_block<C, 3>(x, weights, channels, R, S, h, q, left, target, P * Q, Q);
            break;
          default:
            filter_block<C, kFilters>(x, weights, channels, R, S, h, q, left, target, P * Q, Q);
        }
      }
    }
  }
}

// dw[s] += sum over rows of dz[h, q] x[h + r, q + s], for the kWidth taps of one row of a filter.
template <class C, int kWidth>
void weight_row(const C* dz, const C* x, int64_t x_width, int64_t P, int64_t Q, C* dw) {
  Vec<C> sums[kWidth];
  for (int s = 0; s < kWidth; ++s) sums[s] = Vec<C>{};
  for (int64_t h = 0; h < P; ++h) {
    const C* gradient = dz + h * Q;
    const C* row = x + h * x_width;
    int64_t q = 0;
    for (; q + kLanes<C> <= Q; q += kLanes<C>) {
      const Vec<C> g = load<C>(gradient + q);
      for (int s = 0; s < kWidth; ++s) sums[s] += g * load<C>(row + q + s);
    }
    if (q < Q) {
      // only what counts is read on both sides: 0 times what lies behind could be NaN
      const int lanes = static_cast<int>(Q - q);
      const Vec<C> g = load_partial<C>(gradient + q, lanes);
      for (int s = 0; s < kWidth; ++s) sums[s] += g * load_partial<C>(row + q + s, lanes);
    }
  }
  for (int s = 0; s < kWidth; ++s) dw[s] += reduce_add<C>(sums[s]);
}

template <class C>
void weight_gradient(const Conv2dProblem& p, const C* dz, const Framed<C>& x, C* dw) {
  const int64_t S = p.kernel_width;
  for (int64_t k = 0; k < p.out_channels; ++k) {
    const C* gradient = dz + k * p.out_height * p.out_width;
    for (int64_t c = 0; c < p.in_channels; ++c) {
      for (int64_t r = 0; r < p.kernel_height; ++r) {
        const C* rows = x.data + (c * x.height + r) * x.width;
        C* target = dw + ((k * p.in_channels + c) * p.kernel_height + r) * S;
        switch (S) {
#define CMF_CASE(kWidth)                                                               \
  case kWidth:                                                                         \
    weight_row<C, kWidth>(gradient, rows, x.width, p.out_height, p.out_width, target); \
    break;
          CMF_CASE(1)
          CMF_CASE(2)
          CMF_CASE(3)
          CMF_CASE(4)
          CMF_CASE(5)
          CMF_CASE(6)
          CMF_CASE(7)
#undef CMF_CASE
        }
      }
    }
  }
}

template <class C>
bool forward(const Conv2dProblem& p, const C* x, const C* w, C* z) {
  Framed<C> framed;
  if (!framed.allocate(p.in_channels, p.height, p.width, p.pad_height, p.pad_width)) return false;
  const int64_t x_image = p.in_channels * p.height * p.width;
  const int64_t z_image = p.out_channels * p.out_height * p.out_width;
  for (int64_t n = 0; n < p.batch; ++n) {
    framed.fill(x + n * x_image, p.in_channels, p.pad_height, p.pad_width);
    convolve(framed, w, p.in_channels, p.out_channels, p.kernel_height, p.kernel_width,
             z + n * z_image, p.out_height, p.out_width);
  }
  return true;
}

// w [K, C, R, S] -> [C, K, R, S], each filter turned by half a turn.
template <class C>
void turn_filters(const Conv2dProblem& p, const C* w, C* turned) {
  const int64_t area = p.kernel_height * p.kernel_width;
  for (int64_t k = 0; k < p.out_channels; ++k) {
    for (int64_t c = 0; c < p.in_channels; ++c) {
      const C* source = w + (k * p.in_channels + c) * area;
      C* target = turned + (c * p.out_channels + k) * area;
      for (int64_t i = 0; i < area; ++i) target[i] = source[area - 1 - i];
    }
  }
}

template <class C>
bool backward(const Conv2dProblem& p, const C* dz, const C* x, const C* w, C* dx, C* dw) {
  const int64_t x_image = p.in_channels * p.height * p.width;
  const int64_t z_image = p.out_channels * p.out_height * p.out_width;
  const int64_t weights = p.out_channels * p.in_channels * p.kernel_height * p.kernel_width;
  if (dw) {
    Framed<C> framed;
    if (!framed.allocate(p.in_channels, p.height, p.width, p.pad_height, p.pad_width)) return false;
    memset(dw, 0, static_cast<size_t>(weights) * sizeof(C));
    for (int64_t n = 0; n < p.batch; ++n) {
      framed.fill(x + n * x_image, p.in_channels, p.pad_height, p.pad_width);
      weight_gradient(p, dz + n * z_image, framed, dw);
    }
  }
  if (dx) {
    // dx is dz, framed by what the kernel reaches beyond the padding, convolved with the turned
    // filters
    const int64_t frame_height = p.kernel_height - 1 - p.pad_height;
    const int64_t frame_width = p.kernel_width - 1 - p.pad_width;
    Framed<C> framed;
    C* turned = static_cast<C*>(malloc(static_cast<size_t>(weights) * sizeof(C)));
    if (!turned ||
        !framed.allocate(p.out_channels, p.out_height, p.out_width, frame_height, frame_width)) {
      free(turned);
      return false;
    }
    turn_filters(p, w, turned);
    for (int64_t n = 0; n < p.batch; ++n) {
      framed.fill(dz + n * z_image, p.out_channels, frame_height, frame_width);
      convolve(framed, turned, p.out_channels, p.in_channels, p.kernel_height, p.kernel_width,
               dx + n * x_image, p.height, p.width);
    }
    free(turned);
  }
  return true;
}

}  // namespace

bool conv2d_small_forward(const Conv2dProblem& p, const void* x, const void* w, void* z) {
  if (static_cast<DType>(p.dtype) == DType::kFloat64) {
    return forward(p, static_cast<const double*>(x), static_cast<const double*>(w),
                   static_cast<double*>(z));
  }
  return forward(p, static_cast<const float*>(x), static_cast<const float*>(w),
                 static_cast<float*>(z));
}

bool conv2d_small_backward(const Conv2dProblem& p, const void* dz, const void* x, const void* w,
                           void* dx, void* dw) {
  if (static_cast<DType>(p.dtype) == DType::kFloat64) {
    return backward(p, static_cast<const double*>(dz), static_cast<const double*>(x),
                    static_cast<const double*>(w), static_cast<double*>(dx),
                    static_cast<double*>(dw));
  }
  return backward(p, static_cast<const float*>(dz), static_cast<const float*>(x),
                  static_cast<const float*>(w), static_cast<float*>(dx), static_cast<float*>(dw));
}

}  // namespace CMF_ISA
}  // namespace cmf

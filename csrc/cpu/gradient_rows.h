// Rows of the pooled gradient in either memory format, as gradient_frame.h expands them: channels
// side by side, times the activation's derivative where that follows from the output.
#pragma once

#include "common/activation.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

constexpr int64_t kPixelsAhead = 12;  // that are prefetched

inline Vec<float> load_as_float(const float* source, int lanes) {
  return load_lanes<float>(source, lanes);
}
inline Vec<float> load_as_float(const uint8_t* source, int lanes) {
  return bit_cast<Vec<float>>(lanes == kLanes<float> ? load_bytes<float>(source)
                                                     : load_bytes_partial<float>(source, lanes));
}
inline void store_as(float* target, Vec<float> value) { store<float>(target, value); }
inline void store_as(uint8_t* target, Vec<float> value) {
  store_bytes<float>(target, bit_cast<Mask<float>>(value));
}

// channels [K] of pixels `pixel` apart, or planes [K] `plane` apart -> target [pixels][lanes],
// channels that don't exist as 0.
template <class T>
void load_pixels(const T* source, int64_t pixel, int64_t pixels, int k_count, int lanes,
                 T* target) {
  for (int64_t i = 0; i < pixels; ++i) {
    for (int k = 0; k < lanes; k += kLanes<float>) {
      const int count =
          k_count - k < kLanes<float> ? (k_count > k ? k_count - k : 0) : kLanes<float>;
      store_as(target + i * lanes + k, load_as_float(source + i * pixel + k, count));
    }
  }
}

// load(offset, count): `count` elements of the planes from `offset` on.
template <class T, class Load>
CMF_HOST_DEVICE void turn_planes(int64_t plane, int64_t pixels, int k_count, int lanes,
                                 const Load& load, T* target) {
  for (int k = 0; k < lanes; k += kLanes<float>) {
    for (int64_t i = 0; i < pixels; i += kLanes<float>) {
      const int count = pixels - i < kLanes<float> ? static_cast<int>(pixels - i) : kLanes<float>;
      Vec<float> block[kLanes<float>];
      for (int j = 0; j < kLanes<float>; ++j) {
        block[j] = k + j < k_count ? load((k + j) * plane + i, count) : Vec<float>{};
      }
      transpose_block<float>(block);
      for (int j = 0; j < count; ++j) store_as(target + (i + j) * lanes + k, block[j]);
    }
  }
}

template <class T>
void load_planes(const T* source, int64_t plane, int64_t pixels, int k_count, int lanes,
                 T* target) {
  turn_planes(
      plane, pixels, k_count, lanes,
      [&](int64_t offset, int count) { return load_as_float(source + offset, count); }, target);
}

template <Activation A>
struct ActivationConstant {
  static constexpr Activation value = A;
};

// Pixels of dz -> their gradients, act' applied where `A` is not the identity.
template <Activation A>
CMF_HOST_DEVICE Vec<float> derive(const float* dy, const float* saved, int64_t i, int lanes,
                                  float param) {
  const Vec<float> g = load_lanes<float>(dy + i, lanes);
  if (A == Activation::kIdentity) return g;
  return backward_from_output<A>(g, load_lanes<float>(saved + i, lanes), param);
}

// One pooled row -> the two rows of its windows, of which either may be null.
template <Activation A, class Rule>
void expand_pairs(const float* dy, const float* saved, const uint8_t* codes, int64_t pixel,
                  int64_t count, int k_count, int lanes, const Rule& rule, float scale, float param,
                  float* even, float* odd) {
  for (int64_t q = 0; q < count; ++q) {
    for (int k = 0; k < k_count; k += kLanes<float>) {
      const int left = k_count - k < kLanes<float> ? k_count - k : kLanes<float>;
      const int64_t i = q * pixel + k;
      // pixels of few of their channels are too far apart for the hardware to follow
      __builtin_prefetch(dy + i + kPixelsAhead * pixel);
      if (A != Activation::kIdentity) __builtin_prefetch(saved + i + kPixelsAhead * pixel);
      if (Rule::kCodes && k == 0) __builtin_prefetch(codes + i + kPixelsAhead * pixel);
      const Vec<float> g = derive<A>(dy, saved, i, left, param) * scale;
      Mask<float> code = Mask<float>{};
      if (Rule::kCodes) {
        code = left == kLanes<float> ? load_bytes<float>(codes + i)
                                     : load_bytes_partial<float>(codes + i, left);
      }
      const int64_t target = 2 * q * lanes + k;
      if (even) {
        store<float>(even + target, rule.take(g, code, 0));
        store<float>(even + target + lanes, rule.take(g, code, 1));
      }
      if (odd) {
        store<float>(odd + target, rule.take(g, code, 2));
        store<float>(odd + target + lanes, rule.take(g, code, 3));
      }
    }
  }
}

template <Activation A>
void expand_plain(const float* dy, const float* saved, int64_t pixel, int64_t count, int k_count,
                  int lanes, float param, float* target) {
  for (int64_t q = 0; q < count; ++q) {
    for (int k = 0; k < k_count; k += kLanes<float>) {
      const int left = k_count - k < kLanes<float> ? k_count - k : kLanes<float>;
      const int64_t i = q * pixel + k;
      __builtin_prefetch(dy + i + kPixelsAhead * pixel);
      if (A != Activation::kIdentity) __builtin_prefetch(saved + i + kPixelsAhead * pixel);
      store<float>(target + q * lanes + k, derive<A>(dy, saved, i, left, param));
    }
  }
}

// Pooled gradients times act', channels side by side: of pixels `pixel` apart, or where that is 0
// of planes `plane` apart.
template <Activation A>
void derive_all(const float* dy, const float* saved, int64_t pixel, int64_t plane, int64_t pixels,
                int k_count, int lanes, float param, float* target) {
  if (pixel) {
    return expand_plain<A>(dy, saved, pixel, pixels, k_count, lanes, param, target);
  }
  turn_planes(
      plane, pixels, k_count, lanes,
      [&](int64_t offset, int count) { return derive<A>(dy, saved, offset, count, param); },
      target);
}

}  // namespace CMF_ISA
}  // namespace cmf

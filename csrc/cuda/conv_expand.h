// A chunk of a pooled gradient, expanded to one pixel of its window on its way to shared memory.
#pragma once

#include "cuda/conv_tile.h"
#include "cuda/device_math.h"

namespace cmf {
namespace CMF_ISA {

__device__ __forceinline__ uint32_t stored_bits(BFloat16 a) { return a.bits; }
__device__ __forceinline__ uint32_t stored_bits(Half a) { return a.bits; }
__device__ __forceinline__ uint32_t stored_bits(float a) { return __float_as_uint(a); }

// 16 bytes of elements, the first one lowest.
template <class T>
__device__ __forceinline__ uint4 packed(const T (&e)[8]) {
  return make_uint4(
      stored_bits(e[0]) | stored_bits(e[1]) << 16, stored_bits(e[2]) | stored_bits(e[3]) << 16,
      stored_bits(e[4]) | stored_bits(e[5]) << 16, stored_bits(e[6]) | stored_bits(e[7]) << 16);
}
__device__ __forceinline__ uint4 packed(const float (&e)[4]) {
  return make_uint4(stored_bits(e[0]), stored_bits(e[1]), stored_bits(e[2]), stored_bits(e[3]));
}

// The register's one or two elements times `slope`.
template <Multiply M>
__device__ __forceinline__ uint32_t times(uint32_t bits, float slope) {
  if constexpr (kVector<M> == 4) {
    return __float_as_uint(__uint_as_float(bits) * slope);
  } else {
    typedef Operand<M> T;
    const T low = {static_cast<uint16_t>(bits)}, high = {static_cast<uint16_t>(bits >> 16)};
    return stored_bits(from_compute<T>(to_compute<float>(low) * slope)) |
           stored_bits(from_compute<T>(to_compute<float>(high) * slope)) << 16;
  }
}

// A chunk of filters of one window: the gradient, and the index or mask beside it.
template <Multiply M>
class PooledChunk {
 public:
  // Starts the loads; nothing looks at them yet.
  __device__ __forceinline__ void load(const void* gradient, const uint8_t* index, int64_t at,
                                       bool valid, Expand expand) {
    gradient_ = make_uint4(0, 0, 0, 0);
    CMF_UNROLL(kWords)
    for (int i = 0; i < kWords; ++i) index_[i] = 0;
    if (!valid) return;
    gradient_ =
        __ldg(reinterpret_cast<const uint4*>(static_cast<const Operand<M>*>(gradient) + at));
    if (expand != Expand::kChosen && expand != Expand::kMasked) return;
    if constexpr (kWords == 2) {
      const uint2 both = __ldg(reinterpret_cast<const uint2*>(index + at));
      index_[0] = both.x;
      index_[1] = both.y;
    } else {
      index_[0] = __ldg(reinterpret_cast<const uint32_t*>(index + at));
    }
  }

  // What of it goes to the pixel at `position` of the window.
  __device__ __forceinline__ uint4 expanded(Expand expand, float slope, int position) const {
    if (expand != Expand::kChosen && expand != Expand::kMasked) return gradient_;
    uint32_t passes[kWords];  // 0xff for each element that does
    CMF_UNROLL(kWords)
    for (int i = 0; i < kWords; ++i) {
      passes[i] = expand == Expand::kChosen
                      ? __vcmpeq4(index_[i], static_cast<uint32_t>(position) * 0x01010101u)
                      : (index_[i] >> position & 0x01010101u) * 0xffu;
    }
    return make_uint4(
        part<0>(gradient_.x, passes, expand, slope), part<1>(gradient_.y, passes, expand, slope),
        part<2>(gradient_.z, passes, expand, slope), part<3>(gradient_.w, passes, expand, slope));
  }

 private:
  static constexpr int kWords = kVector<M> / 4;

  // Register i of the chunk: a byte of `passes` for each of its elements.
  template <int i>
  __device__ __forceinline__ static uint32_t part(uint32_t bits, const uint32_t (&passes)[kWords],
                                                  Expand expand, float slope) {
    const uint32_t mask = kWords == 2
                              ? __byte_perm(passes[i / 2 % kWords], 0, i % 2 ? 0x3322 : 0x1100)
                              : __byte_perm(passes[0], 0, i * 0x1111);
    // where nothing passes and the slope is 0, no infinity does either
    if (expand == Expand::kChosen || slope == 0) return bits & mask;
    return (bits & mask) | (times<M>(bits, slope) & ~mask);
  }

  uint4 gradient_;
  uint32_t index_[kWords];
};

}  // namespace CMF_ISA
}  // namespace cmf

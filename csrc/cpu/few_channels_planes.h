// From scratch into a contiguous y: blocks of pixels by channels are turned on the way.
#pragma once

#include "cpu/few_channels_block.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {

// Where a run of pixels goes: channel k's at plane k.
struct Planes {
  float* y;        // of the first pixel and channel
  uint8_t* codes;  // as y, or null
  int64_t plane;   // floats (and bytes of codes) from one channel to the next
  int64_t pixels;
  int channels;
  Activation activation;  // kIdentity, kRelu or kLeakyRelu
  float param;
  bool stream;  // whole aligned vectors, past the caches
};

// The lines that will be written, so that they are on their way while they are computed.
inline void prefetch_planes(const Planes& out) {
  for (int k = 0; k < out.channels && !out.stream; ++k) {
    const float* y = out.y + k * out.plane;
    for (int64_t i = 0; i < out.pixels + kLineFloats - 1; i += kLineFloats) {
      __builtin_prefetch(y + (i < out.pixels ? i : out.pixels - 1), 1, 2);
    }
  }
}

// source [pixels][lanes], activated.
inline void store_planes(const float* source, int lanes, const Planes& out) {
  constexpr int kV = kLanes<float>;
  for (int k = 0; k < out.channels; k += kV) {
    const int filters = out.channels - k < kV ? out.channels - k : kV;
    for (int64_t i = 0; i < out.pixels; i += kV) {
      const int count = out.pixels - i < kV ? static_cast<int>(out.pixels - i) : kV;
      Vec<float> block[kV];
#pragma GCC unroll 16
      for (int j = 0; j < kV; ++j) {
        block[j] = load<float>(source + (i + (j < count ? j : 0)) * lanes + k);
        activate_values<1>(out.activation, out.param, block + j);
      }
      transpose_block<float>(block);
      float* target = out.y + k * out.plane + i;
      if (out.stream && filters == kV) {
#pragma GCC unroll 16
        for (int j = 0; j < kV; ++j) stream(target + j * out.plane, block[j]);
      } else {
        for (int j = 0; j < filters; ++j)
          store_lanes<float>(target + j * out.plane, block[j], count);
      }
    }
  }
}

// source [pixels][lanes], in bytes: four pixels of a channel are one lane.
inline void store_planes(const uint8_t* source, int lanes, const Planes& out) {
  constexpr int kV = kLanes<float>;
  constexpr int kPixels = 4 * kV;
  for (int k = 0; k < out.channels; k += kV) {
    const int filters = out.channels - k < kV ? out.channels - k : kV;
    for (int64_t i = 0; i < out.pixels; i += kPixels) {
      const int64_t left = out.pixels - i;
      const int count = left < kPixels ? static_cast<int>(left) : kPixels;
      Vec<float> block[kV];
#pragma GCC unroll 16
      for (int j = 0; j < kV; ++j) {
        Mask<float> quad = {};
#pragma GCC unroll 4
        for (int b = 0; b < 4; ++b) {
          const int pixel = 4 * j + b < count ? 4 * j + b : 0;
          quad |= load_bytes<float>(source + (i + pixel) * lanes + k) << (8 * b);
        }
        block[j] = bit_cast<Vec<float>>(quad);
      }
      transpose_block<float>(block);
      uint8_t* target = out.codes + k * out.plane + i;
      for (int j = 0; j < filters; ++j) {
        if (count == kPixels) {
          __builtin_memcpy(target + j * out.plane, block + j, kPixels);
        } else {
          uint8_t bytes[kPixels];
          __builtin_memcpy(bytes, block + j, kPixels);
          CopyItems<kPixels / 2, 1>::copy(target + j * out.plane, bytes, count);
        }
      }
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

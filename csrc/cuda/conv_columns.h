// The kernel of the weight gradient: filters times columns (a tap and a channel each), summed over
// the pixels of the batch. Both operands lie by pixels here, and are transposed on their way to the
// matrix units.
#pragma once

#include "cuda/async_copy.h"
#include "cuda/conv_expand.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kFilterRows = 64;  // of a tile
constexpr int kColumnStages = 4;

// Pixels a stage, chunks of a pixel, and bytes of an operand's stage.
template <Multiply M>
constexpr int kPixels = 4 * kVector<M>;
template <Multiply M>
constexpr int kPixelChunks = kTileColumns / kVector<M>;
constexpr int kOperandBytes = 4096;
constexpr int kColumnsSharedBytes = kColumnStages * 2 * kOperandBytes;

// Where chunk `chunk` of pixel `pixel` lies: so that neither 8 pixels of one chunk (16-bit), nor 4
// pixels of two (32-bit) meet in a bank.
template <Multiply M>
__device__ __forceinline__ int pixel_offset(int pixel, int chunk) {
  const int spread = kVector<M> == 8 ? pixel & 7 : (pixel & 3) * 2;
  return (pixel * kPixelChunks<M> + (chunk ^ spread)) * kChunkBytes;
}

template <Multiply M>
__device__ __forceinline__ float pixel_element(const unsigned char* stage, int pixel, int column) {
  const unsigned char* chunk = stage + pixel_offset<M>(pixel, column / 4);
  return reinterpret_cast<const float*>(chunk)[column % 4];
}

// c += aᵀ · b for one stage; the warp's part begins at `row` and `column`.
template <Multiply M, int kSlabs>
__device__ __forceinline__ void multiply_columns(float (&c)[kSlabs][kColumnTiles][4],
                                                 const unsigned char* a, const unsigned char* b,
                                                 int row, int column, int lane) {
  if constexpr (M == Multiply::kFloat32) {
    CMF_UNROLL(2)
    for (int pixel = 0; pixel < kPixels<M>; ++pixel) {
      float right[kColumnTiles][2];
      CMF_UNROLL(kColumnTiles)
      for (int j = 0; j < kColumnTiles; ++j) {
        CMF_UNROLL(2)
        for (int e = 0; e < 2; ++e) {
          right[j][e] = pixel_element<M>(b, pixel, column + 8 * j + lane % 4 * 2 + e);
        }
      }
      CMF_UNROLL(kSlabs)
      for (int i = 0; i < kSlabs; ++i) {
        CMF_UNROLL(2)
        for (int h = 0; h < 2; ++h) {
          const float left = pixel_element<M>(a, pixel, row + 16 * i + 8 * h + lane / 4);
          CMF_UNROLL(kColumnTiles)
          for (int j = 0; j < kColumnTiles; ++j) {
            CMF_UNROLL(2)
            for (int e = 0; e < 2; ++e) {
              c[i][j][2 * h + e] = fmaf(left, right[j][e], c[i][j][2 * h + e]);
            }
          }
        }
      }
    }
  } else {
    CMF_UNROLL(2)
    for (int step = 0; step < 2; ++step) {
      uint32_t left[kSlabs][4], right[kColumnTiles / 2][4];
      if constexpr (M == Multiply::kTf32) {
        const int pixel = 8 * step + lane % 4;
        CMF_UNROLL(kSlabs)
        for (int i = 0; i < kSlabs; ++i) {
          CMF_UNROLL(4)
          for (int part = 0; part < 4; ++part) {
            left[i][part] = __float_as_uint(
                pixel_element<M>(a, pixel + part / 2 * 4, row + 16 * i + part % 2 * 8 + lane / 4));
          }
          round_all_to_tf32(left[i]);
        }
        CMF_UNROLL(kColumnTiles / 2)
        for (int j = 0; j < kColumnTiles / 2; ++j) {
          CMF_UNROLL(4)
          for (int part = 0; part < 4; ++part) {
            right[j][part] = __float_as_uint(pixel_element<M>(
                b, pixel + part % 2 * 4, column + 16 * j + part / 2 * 8 + lane / 4));
          }
          round_all_to_tf32(right[j]);
        }
      } else {
        const int a_pixel = 16 * step + (lane & 7) + (lane >> 4) * 8;
        const int b_pixel = 16 * step + (lane & 15);
        CMF_UNROLL(kSlabs)
        for (int i = 0; i < kSlabs; ++i) {
          const int chunk = row / 8 + 2 * i + (lane >> 3 & 1);
          load_matrices_transposed(left[i], a + pixel_offset<M>(a_pixel, chunk));
        }
        CMF_UNROLL(kColumnTiles / 2)
        for (int j = 0; j < kColumnTiles / 2; ++j) {
          const int chunk = column / 8 + 2 * j + (lane >> 4);
          load_matrices_transposed(right[j], b + pixel_offset<M>(b_pixel, chunk));
        }
      }
      CMF_UNROLL(kSlabs)
      for (int i = 0; i < kSlabs; ++i) {
        CMF_UNROLL(kColumnTiles)
        for (int j = 0; j < kColumnTiles; ++j) {
          multiply_fragments<M>(c[i][j], left[i], right[j / 2][j % 2 * 2],
                                right[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
}

// What a thread brings: one chunk of two pixels that follow each other, of either operand. With 2×2
// windows four pixels are one window's, row by row.
template <Multiply M, bool kChunked>
class PixelOperands {
 public:
  __device__ __forceinline__ PixelOperands(const WeightGradientProblem& p, int first_filter,
                                           int first_column, int first_window, int end, int thread)
      : p_(p),
        pooled_(p.expand != Expand::kNothing),
        pair_(thread / kPixelChunks<M>),
        window_(first_window + (pooled_ ? pair_ / 2 : 2 * pair_)),
        end_(end),
        filter_(first_filter + thread % kPixelChunks<M> * kVector<M>) {
    CMF_UNROLL(2)
    for (int i = 0; i < 2; ++i) {
      target_[i] = pixel_offset<M>(2 * pair_ + i, thread % kPixelChunks<M>);
    }
    const int taps = p.taps_h * p.taps_w;
    const int column = first_column + thread % kPixelChunks<M> * kVector<M>;
    CMF_UNROLL(kSources)
    for (int e = 0; e < kSources; ++e) {
      const int channels = p.columns / taps;
      const int tap = kChunked ? column / channels : (column + e) % taps;
      const int channel = kChunked ? column % channels : (column + e) / taps;
      const bool inside = column + e < p.columns;
      down_[e] = inside ? tap / p.taps_w * p.step_h + p.shift_h : kOutside;
      right_[e] = tap % p.taps_w * p.step_w + p.shift_w;
      offset_[e] =
          inside ? down_[e] * p.stride_h + right_[e] * p.stride_w + channel * p.stride_c : 0;
    }
  }

  __device__ __forceinline__ void fetch(unsigned char* stage) {
    CMF_UNROLL(2)
    for (int i = 0; i < 2; ++i) {
      const int window = pooled_ ? window_ : window_ + i;
      const bool inside = window < end_;
      if (i == 0 || !pooled_) {
        gradient_[i].load(p_.gradient, p_.index, int64_t{window} * p_.filters_row + filter_,
                          inside && filter_ < p_.filters_row, p_.expand);
      }
      const uint32_t n = divide(window, p_.plane), rest = window - n * p_.plane.divisor;
      const int row = static_cast<int>(divide(rest, p_.row));
      const int column = static_cast<int>(rest - row * p_.row.divisor);
      const int h = (pooled_ ? 2 * row + pair_ % 2 : row) * p_.scale_h;
      const int w = (pooled_ ? 2 * column + i : column) * p_.scale_w;
      const T* image = static_cast<const T*>(p_.x) + n * p_.image;
      const int pixel = h * p_.stride_h + w * p_.stride_w;
      CMF_UNROLL(kSources)
      for (int e = 0; e < kSources; ++e) {
        const bool valid = inside &&
                           static_cast<unsigned>(h + down_[e]) < static_cast<unsigned>(p_.height) &&
                           static_cast<unsigned>(w + right_[e]) < static_cast<unsigned>(p_.width);
        if constexpr (kChunked) {
          copy_async<kChunkBytes>(stage + kOperandBytes + target_[i],
                                  valid ? image + pixel + offset_[e] : p_.x, valid);
        } else {
          source_[i][e] = valid ? image[pixel + offset_[e]] : T{};
        }
      }
    }
    window_ += kPixels<M> / (pooled_ ? 4 : 1);
  }

  __device__ __forceinline__ void store(unsigned char* stage) {
    CMF_UNROLL(2)
    for (int i = 0; i < 2; ++i) {
      PooledChunk<M> gradient = gradient_[i];
      if (i == 1 && pooled_) gradient = gradient_[0];  // an index here would put both into memory
      *reinterpret_cast<uint4*>(stage + target_[i]) =
          gradient.expanded(p_.expand, p_.slope, pair_ % 2 * 2 + i);
      if constexpr (!kChunked) {
        *reinterpret_cast<uint4*>(stage + kOperandBytes + target_[i]) = packed(source_[i]);
      }
    }
  }

 private:
  typedef Operand<M> T;
  static constexpr int kSources = kChunked ? 1 : kVector<M>;

  const WeightGradientProblem& p_;
  const bool pooled_;
  const int pair_;
  int window_;
  const int end_;
  const int filter_;
  int target_[2];
  int down_[kSources];
  int right_[kSources];
  int offset_[kSources];
  PooledChunk<M> gradient_[2];
  T source_[2][kVector<M>];
};

template <Multiply M, bool kChunked>
__global__ void __launch_bounds__(kTileThreads, 4)
    multiply_pixels(const __grid_constant__ WeightGradientProblem p) {
  constexpr int stage_bytes = 2 * kOperandBytes;
  CMF_DYNAMIC_SHARED(unsigned char, shared);

  // 1. Which filters and columns, and which windows.
  const unsigned column_blocks = (p.columns + kTileColumns - 1) / kTileColumns;
  const int first_filter = static_cast<int>(blockIdx.x / column_blocks) * kFilterRows;
  const int first_column = static_cast<int>(blockIdx.x % column_blocks) * kTileColumns;
  const int split = static_cast<int>(blockIdx.y);
  const int first = split * p.windows_a_split;
  const int end = min(first + p.windows_a_split, p.windows);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % 2 * (kFilterRows / 2), warp_column = warp / 2 * (kTileColumns / 2);

  // 2. The products, a stage at a time, while the next ones are on their way.
  float sums[kFilterRows / 32][kColumnTiles][4] = {};
  PixelOperands<M, kChunked> operands(p, first_filter, first_column, first, end, threadIdx.x);
  const int step_windows = kPixels<M> / (p.expand == Expand::kNothing ? 1 : 4);
  const int steps = (end - first + step_windows - 1) / step_windows;
  CMF_UNROLL(1)
  for (int step = 0; step < kColumnStages - 1; ++step) {
    if (step < steps) {
      operands.fetch(shared + step * stage_bytes);
      operands.store(shared + step * stage_bytes);
    }
    commit_copies();
  }
  CMF_UNROLL(1)
  for (int step = 0; step < steps; ++step) {
    wait_copies<kColumnStages - 2>();
    __syncthreads();  // this stage is there, and the one before it is free
    const int ahead = step + kColumnStages - 1;
    unsigned char* free_stage = shared + ahead % kColumnStages * stage_bytes;
    if (ahead < steps) operands.fetch(free_stage);
    commit_copies();
    const unsigned char* stage = shared + step % kColumnStages * stage_bytes;
    multiply_columns<M>(sums, stage, stage + kOperandBytes, warp_row, warp_column, lane);
    if (ahead < steps) operands.store(free_stage);
  }

  // 3. This split's part of the sum.
  float* partial = p.partial + int64_t{split} * p.filters * p.columns;
  CMF_UNROLL(kFilterRows / 32)
  for (int i = 0; i < kFilterRows / 32; ++i) {
    CMF_UNROLL(kColumnTiles)
    for (int j = 0; j < kColumnTiles; ++j) {
      CMF_UNROLL(4)
      for (int e = 0; e < 4; ++e) {
        const int filter = first_filter + warp_row + 16 * i + e / 2 * 8 + lane / 4;
        const int column = first_column + warp_column + 8 * j + lane % 4 * 2 + e % 2;
        if (filter < p.filters && column < p.columns) {
          partial[int64_t{filter} * p.columns + column] = sums[i][j][e];
        }
      }
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

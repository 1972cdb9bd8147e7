// What brings the operands of a tile into shared memory, 64 bytes of every row and column a stage.
//
// A class of operands has
//   kFollowed     whether anything follows the products
//   steps(p)      how many stages the reduction has
//   fetch(stage)  starts the next one's way: past the registers, or into them
//   store(stage)  and on to shared memory, where it came into registers
#pragma once

#include "cuda/async_copy.h"
#include "cuda/conv_expand.h"
#include "cuda/conv_place.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kFetchedRows = kTileThreads / kChunks;  // by all threads at once

// Where a thread is in the reduction: a chunk of a tap.
struct TapWalk {
  int chunk, s, r;

  __device__ __forceinline__ TapWalk(int first, const RowsProblem& p) : chunk(first), s(0), r(0) {
    settle(p);
  }
  __device__ __forceinline__ void advance(const RowsProblem& p) {
    chunk += kChunks;
    settle(p);
  }
  __device__ __forceinline__ void settle(const RowsProblem& p) {
    while (chunk >= p.chunks) {
      chunk -= p.chunks;
      if (++s == p.taps_w) {
        s = 0;
        ++r;
      }
    }
  }
};

// The tap-independent part of a row's addresses: where its pixel looks with tap (0, 0).
template <int kRows>
struct SourceRows {
  int image[kRows];  // elements from the tile's first image
  int h[kRows];
  int w[kRows];

  // Rows first, first + apart, ...
  __device__ __forceinline__ SourceRows(const RowsProblem& p, const TilePlace& tile, int first,
                                        int apart) {
    CMF_UNROLL(kRows)
    for (int i = 0; i < kRows; ++i) {
      const bool pooled = p.window != Window::kNone;
      const Pixel pixel = pixel_of_row(first + i * apart, pooled);
      const WindowPlace place(tile, pixel.window, p.plane, p.row);
      const bool inside = tile.first + pixel.window < p.windows;
      const int row = pooled ? 2 * place.p + pixel.y : place.p;
      const int column = pooled ? 2 * place.q + pixel.x : place.q;
      image[i] = inside ? place.image * static_cast<int>(p.image) : 0;
      h[i] = inside ? row * p.scale_h + p.shift_h : kOutside;
      w[i] = column * p.scale_w + p.shift_w;
    }
  }
};

// Chunks of 16 bytes, of the source as it is or of a pooled gradient that is expanded on its way.
template <Multiply M, int kTileRows, bool kExpand>
class ChunkedOperands {
 public:
  static constexpr bool kFollowed = !kExpand;

  static __device__ __forceinline__ int steps(const RowsProblem& p) {
    return (p.taps_h * p.taps_w * p.chunks + kChunks - 1) / kChunks;
  }

  __device__ __forceinline__ ChunkedOperands(const RowsProblem& p, const TilePlace& tile,
                                             int first_column, int thread)
      : p_(p),
        walk_(thread % kChunks, p),
        rows_(p, tile, thread / kChunks, kFetchedRows),
        base_(static_cast<const T*>(p.source) + tile.image * p.image),
        index_(p.index + (kExpand ? tile.image * p.image : 0)),
        target_(chunk_offset(thread / kChunks, thread % kChunks)) {
    CMF_UNROLL(kColumns)
    for (int i = 0; i < kColumns; ++i) {
      const int column = first_column + thread / kChunks + i * kFetchedRows;
      column_[i] = column < p.columns ? column * p.weights_row + p.weights_first : -1;
    }
  }

  __device__ __forceinline__ void fetch(unsigned char* stage) {
    const bool inside = walk_.r < p_.taps_h;
    const int in_tap = walk_.chunk * kVector<M>;
    const int down = walk_.r * p_.step_h, right = walk_.s * p_.step_w;
    CMF_UNROLL(kRows)
    for (int i = 0; i < kRows; ++i) {
      const int h = rows_.h[i] + down, w = rows_.w[i] + right;
      const bool valid = inside && static_cast<unsigned>(h) < static_cast<unsigned>(p_.height) &&
                         static_cast<unsigned>(w) < static_cast<unsigned>(p_.width);
      if constexpr (kExpand) {
        const int shift = p_.expand == Expand::kNothing ? 0 : 1;
        const int at = !valid ? 0
                              : rows_.image[i] + (h >> shift) * p_.stride_h +
                                    (w >> shift) * p_.stride_w + in_tap;
        gradient_[i].load(base_, index_, at, valid, p_.expand);
        position_[i] = (h & 1) * 2 + (w & 1);
      } else {
        const int at = valid ? rows_.image[i] + h * p_.stride_h + w * p_.stride_w + in_tap : 0;
        copy_async<kChunkBytes>(stage + target_ + i * kFetchedRows * kStageBytes, base_ + at,
                                valid);
      }
    }
    const T* weights = static_cast<const T*>(p_.weights);
    const int tap = walk_.r * p_.weights_tap_h + walk_.s * p_.weights_tap_w + in_tap;
    unsigned char* columns = stage + kTileRows * kStageBytes + target_;
    CMF_UNROLL(kColumns)
    for (int i = 0; i < kColumns; ++i) {
      const bool valid = inside && column_[i] >= 0;
      copy_async<kChunkBytes>(columns + i * kFetchedRows * kStageBytes,
                              valid ? weights + column_[i] + tap : weights, valid);
    }
    walk_.advance(p_);
  }

  __device__ __forceinline__ void store(unsigned char* stage) {
    if constexpr (kExpand) {
      CMF_UNROLL(kRows)
      for (int i = 0; i < kRows; ++i) {
        *reinterpret_cast<uint4*>(stage + target_ + i * kFetchedRows * kStageBytes) =
            gradient_[i].expanded(p_.expand, p_.slope, position_[i]);
      }
    }
  }

 private:
  typedef Operand<M> T;
  static constexpr int kRows = kTileRows / kFetchedRows;
  static constexpr int kColumns = kTileColumns / kFetchedRows;

  const RowsProblem& p_;
  TapWalk walk_;
  SourceRows<kRows> rows_;
  const T* base_;
  const uint8_t* index_;
  int target_;
  int column_[kColumns];
  PooledChunk<M> gradient_[kExpand ? kRows : 1];
  int position_[kExpand ? kRows : 1];
};

// Single elements, for few channels and for images whose channels lie apart; taps fastest, as a
// contiguous weight has them. A warp takes one chunk of every row, so that its lanes read
// neighbouring pixels, and where it is in the reduction is the same for all of them.
template <Multiply M, int kTileRows>
class GatheredOperands {
 public:
  static constexpr bool kFollowed = true;

  static __device__ __forceinline__ int steps(const RowsProblem& p) {
    return (p.weights_row + kChunks * kVector<M> - 1) / (kChunks * kVector<M>);
  }

  __device__ __forceinline__ GatheredOperands(const RowsProblem& p, const TilePlace& tile,
                                              int first_column, int thread)
      : p_(p),
        rows_(p, tile, thread % 32, 32),
        base_(static_cast<const T*>(p.source) + tile.image * p.image),
        next_(thread / 32 * kVector<M>),
        target_(chunk_offset(thread % 32, thread / 32)) {
    CMF_UNROLL(kColumns)
    for (int i = 0; i < kColumns; ++i) {
      const int column = first_column + thread % 32 + i * 32;
      column_[i] = column < p.columns ? column * p.weights_row : -1;
    }
  }

  __device__ __forceinline__ void fetch(unsigned char* stage) {
    const int taps = p_.taps_h * p_.taps_w;
    int c = next_ / taps;
    int r = next_ % taps / p_.taps_w, s = next_ % taps % p_.taps_w;
    CMF_UNROLL(kVector<M>)
    for (int e = 0; e < kVector<M>; ++e) {
      const bool inside = next_ + e < p_.weights_row;
      const int down = r * p_.step_h, right = s * p_.step_w, channel = c * p_.stride_c;
      CMF_UNROLL(kRows)
      for (int i = 0; i < kRows; ++i) {
        const int h = rows_.h[i] + down, w = rows_.w[i] + right;
        const bool valid = inside && static_cast<unsigned>(h) < static_cast<unsigned>(p_.height) &&
                           static_cast<unsigned>(w) < static_cast<unsigned>(p_.width);
        source_[i][e] =
            valid ? base_[rows_.image[i] + h * p_.stride_h + w * p_.stride_w + channel] : T{};
      }
      if (++s == p_.taps_w) {
        s = 0;
        if (++r == p_.taps_h) {
          r = 0;
          ++c;
        }
      }
    }
    const T* weights = static_cast<const T*>(p_.weights);
    unsigned char* columns = stage + kTileRows * kStageBytes + target_;
    CMF_UNROLL(kColumns)
    for (int i = 0; i < kColumns; ++i) {
      if (p_.wide_weights) {
        const bool valid = column_[i] >= 0 && next_ < p_.weights_row;
        copy_async<kChunkBytes>(columns + i * 32 * kStageBytes,
                                valid ? weights + column_[i] + next_ : weights, valid);
        continue;
      }
      CMF_UNROLL(kVector<M>)
      for (int e = 0; e < kVector<M>; ++e) {
        const bool valid = column_[i] >= 0 && next_ + e < p_.weights_row;
        weights_[i][e] = valid ? weights[column_[i] + next_ + e] : T{};
      }
    }
    next_ += kChunks * kVector<M>;
  }

  __device__ __forceinline__ void store(unsigned char* stage) {
    CMF_UNROLL(kRows)
    for (int i = 0; i < kRows; ++i) {
      *reinterpret_cast<uint4*>(stage + target_ + i * 32 * kStageBytes) = packed(source_[i]);
    }
    if (p_.wide_weights) return;
    CMF_UNROLL(kColumns)
    for (int i = 0; i < kColumns; ++i) {
      *reinterpret_cast<uint4*>(stage + (kTileRows + i * 32) * kStageBytes + target_) =
          packed(weights_[i]);
    }
  }

 private:
  typedef Operand<M> T;
  static constexpr int kRows = kTileRows / 32;
  static constexpr int kColumns = kTileColumns / 32;

  const RowsProblem& p_;
  SourceRows<kRows> rows_;
  const T* base_;
  int next_;  // the warp's first element of the next stage
  int target_;
  int column_[kColumns];
  T source_[kRows][kVector<M>];
  T weights_[kColumns][kVector<M>];
};

}  // namespace CMF_ISA
}  // namespace cmf

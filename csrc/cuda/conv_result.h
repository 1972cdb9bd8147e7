// What follows a tile's products: bias, pooling, activation; and the way to memory.
#pragma once

#include "cuda/activation_runs.h"
#include "cuda/conv_place.h"
#include "cuda/vector_io.h"

namespace cmf {
namespace CMF_ISA {

// Positions in a window, row by row: of equal values the first wins, NaN over every number, of
// several NaN the last.
struct Maximum {
  float value;
  int position;

  __device__ __forceinline__ void meet(float other, int at) {
    if (other > value || other != other) {
      value = other;
      position = at;
    }
  }
};

__device__ __forceinline__ float bent(float z, const PiecewiseLinear& f) {
  const float below = f.dead ? 0.0f : z * f.below;
  return z < 0 ? below : z > f.cap ? f.cap : z;
}
// Whether the derivative at z is 1; else it is `below`, or 0.
__device__ __forceinline__ bool passes(float z, const PiecewiseLinear& f) {
  return (z > 0 || (f.dead && z != z)) && !(z >= f.cap);
}

// Shared memory of a tile's results, where its operands were.
template <int kTileRows>
struct ResultTile {
  // odd where lanes go down a column, else a multiple of 8 that spreads a fragment over the banks
  static constexpr int kMostPitch = kTileColumns + 8;

  float sums[kTileRows * kMostPitch];
  uint8_t positions[kTileRows / 4 * kTileColumns];
  int64_t places[kTileRows];  // of a window's first column in y; -1: there is none
};

// kFollowed: something may follow the products, and not their factor alone.
template <Multiply M, int kTileRows, bool kFollowed>
class Result {
 public:
  static constexpr int kSlabs = kTileRows / 32;  // of a warp
  typedef float Sums[kSlabs][kColumnTiles][4];

  __device__ __forceinline__ Result(const RowsProblem& p, unsigned char* shared,
                                    const TilePlace& tile, int first_column)
      : p_(p),
        shared_(*reinterpret_cast<ResultTile<kTileRows>*>(shared)),
        tile_(tile),
        first_column_(first_column),
        pitch_(p.y_channels_last ? kTileColumns + 8 : kTileColumns + 1),
        windows_(p.window == Window::kNone ? kTileRows : kTileRows / 4) {}

  // All threads; nobody may still be reading operands.
  __device__ __forceinline__ void write(Sums& sums, int warp_row, int warp_column) {
    const int thread = threadIdx.x;
    if (thread < windows_) shared_.places[thread] = place(thread);
    add_bias(sums, warp_column);
    if (kFollowed && (p_.window == Window::kMaximum || p_.window == Window::kAverage)) {
      keep_windows(sums, warp_row, warp_column);
    } else {
      keep_all(sums, warp_row, warp_column);
    }
    __syncthreads();
    if (p_.y_runs) {
      CMF_UNROLL(1)
      for (int e = thread; e < windows_ * kRuns; e += kTileThreads) {
        const int window = e / kRuns, column = e % kRuns * kRun;
        if (shared_.places[window] >= 0 && first_column_ + column < p_.columns) {
          finish_run(window, column);
        }
      }
      return;
    }
    CMF_UNROLL(1)
    for (int e = thread; e < windows_ * kTileColumns; e += kTileThreads) {
      const int window = p_.y_channels_last ? e / kTileColumns : e % windows_;
      const int column = p_.y_channels_last ? e % kTileColumns : e / windows_;
      if (shared_.places[window] >= 0 && first_column_ + column < p_.columns) {
        finish(window, column);
      }
    }
  }

 private:
  typedef Operand<M> T;
  static constexpr int kRun = kVector<M>;  // elements of a result of 16 bytes
  static constexpr int kRuns = kTileColumns / kRun;

  __device__ __forceinline__ int64_t place(int window) const {
    if (tile_.first + window >= p_.windows) return -1;
    const WindowPlace at(tile_, window, p_.plane, p_.row);
    return (tile_.image + at.image) * p_.y_image + at.p * p_.y_row + at.q * p_.y_pixel;
  }

  __device__ __forceinline__ void add_bias(Sums& sums, int warp_column) const {
    const T* bias = static_cast<const T*>(p_.bias);
    CMF_UNROLL(kColumnTiles)
    for (int j = 0; j < kColumnTiles; ++j) {
      CMF_UNROLL(2)
      for (int e = 0; e < 2; ++e) {
        const int column = first_column_ + warp_column + 8 * j + threadIdx.x % 4 * 2 + e;
        const float b =
            kFollowed && bias && column < p_.columns ? to_compute<float>(bias[column]) : 0.0f;
        CMF_UNROLL(kSlabs)
        for (int i = 0; i < kSlabs; ++i) {
          sums[i][j][e] = fmaf(sums[i][j][e], p_.factor, b);
          sums[i][j][e + 2] = fmaf(sums[i][j][e + 2], p_.factor, b);
        }
      }
    }
  }

  // A thread holds two columns of two pixels that lie above each other; its neighbour (lane ^ 4)
  // those beside them. Each gives the other one column, and has the four pixels of a window.
  __device__ __forceinline__ void keep_windows(const Sums& sums, int warp_row, int warp_column) {
    const int lane = threadIdx.x % 32;
    const bool odd = lane & 4;  // the right pixels, and the second column
    const int window = warp_row / 4 + lane / 8;
    const int column = warp_column + lane % 4 * 2 + (odd ? 1 : 0);
    CMF_UNROLL(kSlabs)
    for (int i = 0; i < kSlabs; ++i) {
      CMF_UNROLL(kColumnTiles)
      for (int j = 0; j < kColumnTiles; ++j) {
        const float (&c)[4] = sums[i][j];
        const float above = __shfl_xor_sync(0xffffffffu, odd ? c[0] : c[1], 4);
        const float below = __shfl_xor_sync(0xffffffffu, odd ? c[2] : c[3], 4);
        const float z[4] = {odd ? above : c[0], odd ? c[1] : above, odd ? below : c[2],
                            odd ? c[3] : below};
        float value;
        int kept;
        if (p_.window == Window::kMaximum) {
          Maximum best = {z[0], 0};
          CMF_UNROLL(3)
          for (int position = 1; position < 4; ++position) best.meet(z[position], position);
          value = best.value;
          kept = best.position;
        } else {
          value = 0;
          kept = 0;
          CMF_UNROLL(4)
          for (int position = 0; position < 4; ++position) {
            value += bent(z[position], p_.bent);
            kept |= passes(z[position], p_.bent) << position;
          }
          value /= 4;
        }
        shared_.sums[(window + 4 * i) * pitch_ + column + 8 * j] = value;
        shared_.positions[(window + 4 * i) * kTileColumns + column + 8 * j] =
            static_cast<uint8_t>(kept);
      }
    }
  }

  __device__ __forceinline__ void keep_all(const Sums& sums, int warp_row, int warp_column) {
    const int lane = threadIdx.x % 32;
    float* first = shared_.sums + (warp_row + lane / 4) * pitch_ + warp_column + lane % 4 * 2;
    CMF_UNROLL(kSlabs)
    for (int i = 0; i < kSlabs; ++i) {
      CMF_UNROLL(kColumnTiles)
      for (int j = 0; j < kColumnTiles; ++j) {
        CMF_UNROLL(4)
        for (int e = 0; e < 4; ++e) {
          first[(16 * i + e / 2 * 8) * pitch_ + 8 * j + e % 2] = sums[i][j][e];
        }
      }
    }
  }

  // 16 bytes of the result, where nothing but the activation is left to do.
  __device__ __forceinline__ void finish_run(int window, int column) {
    const Activation activation = static_cast<Activation>(p_.activation);
    float* sums = shared_.sums + window * pitch_ + column;
    const int at = first_column_ + column;
    const int64_t offset = shared_.places[window] + at;
    float z[kRun];
    Run<float, kRun>::load(sums, z);
    if (!kFollowed) {
      store_run(static_cast<T*>(p_.y) + offset, z);
      return;
    }
    if (p_.preactivation) store_run(static_cast<T*>(p_.preactivation) + offset, z);
    if (activation == Activation::kRelu) {
      CMF_UNROLL(kRun)
      for (int i = 0; i < kRun; ++i) z[i] = activate<Activation::kRelu>(z[i], p_.param);
    } else if (activation == Activation::kLeakyRelu) {
      CMF_UNROLL(kRun)
      for (int i = 0; i < kRun; ++i) z[i] = activate<Activation::kLeakyRelu>(z[i], p_.param);
    } else if (activation != Activation::kIdentity) {
      // in memory, so that the loop over all that an activation may be need not be unrolled
      CMF_UNROLL(1)
      for (int i = 0; i < kRun; ++i) sums[i] = activate(activation, sums[i], p_.param);
      Run<float, kRun>::load(sums, z);
    }
    store_run(static_cast<T*>(p_.y) + offset, z);
    if (p_.kept) {
      uint8_t positions[kRun];
      Run<uint8_t, kRun>::load(shared_.positions + window * kTileColumns + column, positions);
      Run<uint8_t, kRun>::store(p_.kept + int64_t{tile_.first + window} * p_.kept_row + at,
                                positions);
    }
  }

  // One element of the result, out of shared memory; where it is still to be pooled, of a window.
  __device__ __forceinline__ void finish(int window, int column) const {
    const Activation activation = static_cast<Activation>(p_.activation);
    const bool average = p_.window == Window::kAverageOf;
    const bool pooled = average || p_.window == Window::kMaximumOf;
    const int first = pooled ? window / 4 * 16 + window % 4 * 2 : window;
    float z = 0, total = 0;
    Maximum best = {0, 0};
    CMF_UNROLL(1)
    for (int position = 0; position < (pooled ? 4 : 1); ++position) {
      const int row = first + position % 2 + position / 2 * 8;
      const float other = shared_.sums[row * pitch_ + column];
      const float value = kFollowed ? activate(activation, other, p_.param) : other;
      total += value;
      if (position == 0 || value > best.value || value != value) {
        best = Maximum{value, position};
        z = other;
      }
    }
    const int at = first_column_ + column;
    const int64_t offset = shared_.places[window] + at * p_.y_column;
    static_cast<T*>(p_.y)[offset] = from_compute<T>(average ? total / 4 : best.value);
    if (!kFollowed) return;
    if (p_.preactivation) static_cast<T*>(p_.preactivation)[offset] = from_compute<T>(z);
    if (p_.kept) {
      const int kept = pooled ? best.position : shared_.positions[window * kTileColumns + column];
      p_.kept[int64_t{tile_.first + window} * p_.kept_row + at] = static_cast<uint8_t>(kept);
    }
  }

  const RowsProblem& p_;
  ResultTile<kTileRows>& shared_;
  const TilePlace& tile_;
  const int first_column_;
  const int pitch_;
  const int windows_;
};

}  // namespace CMF_ISA
}  // namespace cmf

// How the threads of a launch share the elements between a convolution and its pooled output.
//
// A tensor is [images, cells, channels]: contiguous, an image is a plane of one channel; for
// channels_last it is all channels of an image, interleaved. A cell is what a thread takes at once
// at one place of the plane (an output, a window, a run of elements: the kernel's choice), of one
// channel or of a vector of them.
//
// A block is kThreads threads [threadIdx.y][threadIdx.x]. Contiguous: each row of threads has a
// part of one plane. channels_last: threadIdx.x takes vectors of channels, threadIdx.y cells. In
// both, sums over the cells stay within few threads, and their partial sums have a fixed order.
#pragma once

#include "cuda/device_math.h"
#include "cuda/divider.h"
#include "cuda/vector_io.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kThreads = 256;

struct Tiling {
  bool channels_last;
  int64_t images;         // planes, or images
  int64_t interleaved;    // channels of an image's element: 1, or K
  int64_t cells;          // of an image
  int64_t chunk;          // cells of a row of threads, or cells that a block takes
  int64_t parts;          // chunks of a plane, or of all cells of all images
  int64_t channel_tiles;  // channels_last: blocks beside each other
  Divider by_cells;
  Divider by_cell_width;
  Divider by_parts;     // or by channel_tiles
  Divider by_channels;  // contiguous
  int64_t cell_width;   // cells of a row of the plane
  int threads_x;
  int threads_y;
};

// What one step of a thread is about.
struct Cell {
  int64_t image;
  int64_t place;  // of the image's cells
  int row;        // the same in the plane
  int column;
  int64_t lane;  // the first of its interleaved channels: 0, contiguous
};

// A thread's cells: `Walk walk(tiling, vector); while (walk.next(&cell)) ...`
class Walk {
 public:
  // `vector`: channels a thread takes at once, channels_last.
  __device__ __forceinline__ Walk(const Tiling& t, int vector) : t_(t) {
    if (t.channels_last) {
      const int64_t chunk = t.by_parts.divide(blockIdx.x);
      const int64_t tile = blockIdx.x - chunk * t.channel_tiles;
      channel_ = (tile * t.threads_x + threadIdx.x) * vector;
      image_ = 0;
      const int64_t first = chunk * t.chunk, all = t.images * t.cells;
      end_ = first + t.chunk < all ? first + t.chunk : all;
      at_ = first + threadIdx.y;
      step_ = t.threads_y;
      if (channel_ >= t.interleaved) at_ = end_;
    } else {
      const int64_t unit = static_cast<int64_t>(blockIdx.x) * t.threads_y + threadIdx.y;
      image_ = t.by_parts.divide(unit);
      channel_ = 0;
      end_ = at_ = 0;
      step_ = t.threads_x;
      if (image_ < t.images) {
        channel_ = image_ - t.by_channels.divide(image_) * t.by_channels.divisor;
        const int64_t first = (unit - image_ * t.parts) * t.chunk;
        end_ = first + t.chunk < t.cells ? first + t.chunk : t.cells;
        at_ = first + threadIdx.x;
      }
    }
  }

  // The first of this thread's channels, of the K.
  __device__ __forceinline__ int64_t channel() const { return channel_; }

  __device__ __forceinline__ bool next(Cell* cell) {
    if (at_ >= end_) return false;
    int64_t in_image = at_;
    cell->image = image_;
    if (t_.channels_last) {
      cell->image = t_.by_cells.divide(at_);
      in_image -= cell->image * t_.cells;
    }
    const int64_t row = t_.by_cell_width.divide(in_image);
    cell->place = in_image;
    cell->row = static_cast<int>(row);
    cell->column = static_cast<int>(in_image - row * t_.cell_width);
    cell->lane = t_.channels_last ? channel_ : 0;
    at_ += step_;
    return true;
  }

 private:
  const Tiling& t_;
  int64_t image_;
  int64_t channel_;
  int64_t at_;
  int64_t end_;
  int64_t step_;
};

// Contiguous: partial [parts of all planes]; channels_last: partial [parts, K]. S: float, or double
// over double. Every thread of the block calls it.
template <class S, class C, int N>
__device__ __forceinline__ void store_partial_sums(const Tiling& t, const C (&sums)[N],
                                                   S* partial) {
  CMF_SHARED(S[kThreads * N], shared);
  if (t.channels_last) {
    const int columns = t.threads_x * N;
    CMF_UNROLL(N)
    for (int v = 0; v < N; ++v) {
      shared[threadIdx.y * columns + threadIdx.x * N + v] = static_cast<S>(sums[v]);
    }
    __syncthreads();
    const int64_t chunk = t.by_parts.divide(blockIdx.x);
    const int64_t first = (blockIdx.x - chunk * t.channel_tiles) * columns;
    const int thread = static_cast<int>(threadIdx.y) * t.threads_x + static_cast<int>(threadIdx.x);
    for (int column = thread; column < columns; column += kThreads) {
      if (first + column >= t.interleaved) break;
      S sum = 0;
      for (int row = 0; row < t.threads_y; ++row) sum += shared[row * columns + column];
      partial[chunk * t.interleaved + first + column] = sum;
    }
    return;
  }
  S sum = static_cast<S>(sums[0]);
  CMF_UNROLL(N)
  for (int v = 1; v < N; ++v) sum += static_cast<S>(sums[v]);
  const int width = t.threads_x < 32 ? t.threads_x : 32;
  for (int lanes = width / 2; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * t.threads_y + threadIdx.y;
  if (t.threads_x > 32) {  // a plane's part has several warps
    if (threadIdx.x % 32 == 0) shared[threadIdx.y * t.threads_x / 32 + threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      sum = 0;
      for (int warp = 0; warp < t.threads_x / 32; ++warp) {
        sum += shared[threadIdx.y * t.threads_x / 32 + warp];
      }
    }
  }
  if (threadIdx.x == 0 && unit < t.images * t.parts) partial[unit] = sum;
}

// What the launch of a kernel needs. `cells`, `cell_width`: of an image; `vector`: channels a
// thread takes at once, channels_last.
Tiling make_tiling(bool channels_last, int64_t batch, int64_t channels, int64_t cells,
                   int64_t cell_width, int vector);
int64_t blocks_of(const Tiling& tiling);
// Elements of `partial`; a channel's sums lie at channel + k * channels (channels_last), or are
// [batch, channels, parts].
int64_t partial_sums_of(const Tiling& tiling);

}  // namespace CMF_ISA
}  // namespace cmf

// The kernel of forward convolutions and input gradients: one tile of rows and columns a block.
#pragma once

#include "cuda/conv_operands.h"
#include "cuda/conv_result.h"
#include "cuda/launch.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kStages = 4;

template <int kTileRows>
constexpr int kRowsSharedBytes = kStages * (kTileRows + kTileColumns) * kStageBytes;

template <Multiply M, class Operands, int kTileRows>
__global__ void __launch_bounds__(kTileThreads, kTileRows == 128 ? 3 : 4)
    multiply_tile(const __grid_constant__ RowsProblem p) {
  static_assert(sizeof(ResultTile<kTileRows>) <= kRowsSharedBytes<kTileRows>, "shared memory");
  constexpr int stage_bytes = (kTileRows + kTileColumns) * kStageBytes;
  CMF_DYNAMIC_SHARED(unsigned char, shared);

  // 1. Which rows and columns. Neighbouring blocks share rows: the source stays in L2.
  const unsigned column_blocks = (p.columns + kTileColumns - 1) / kTileColumns;
  const unsigned row_block = blockIdx.x / column_blocks;
  const int first_column = static_cast<int>(blockIdx.x % column_blocks) * kTileColumns;
  const TilePlace tile(row_block * (p.window == Window::kNone ? kTileRows : kTileRows / 4),
                       p.plane);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % 2 * (kTileRows / 2), warp_column = warp / 2 * (kTileColumns / 2);

  // 2. The products, a stage at a time, while the next ones are on their way.
  float sums[kTileRows / 32][kColumnTiles][4] = {};
  Operands operands(p, tile, first_column, threadIdx.x);
  const int steps = Operands::steps(p);
  CMF_UNROLL(1)
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) {
      operands.fetch(shared + step * stage_bytes);
      operands.store(shared + step * stage_bytes);
    }
    commit_copies();
  }
  CMF_UNROLL(1)
  for (int step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();  // this stage is there, and the one before it is free
    const int ahead = step + kStages - 1;
    unsigned char* free_stage = shared + ahead % kStages * stage_bytes;
    if (ahead < steps) operands.fetch(free_stage);
    commit_copies();
    const unsigned char* stage = shared + step % kStages * stage_bytes;
    multiply_rows<M>(sums, stage + warp_row * kStageBytes,
                     stage + (kTileRows + warp_column) * kStageBytes, lane);
    if (ahead < steps) operands.store(free_stage);
  }
  wait_copies<0>();
  __syncthreads();

  // 3. What follows.
  Result<M, kTileRows, Operands::kFollowed>(p, shared, tile, first_column)
      .write(sums, warp_row, warp_column);
}

template <Multiply M, class Operands, int kTileRows>
void launch_tiles(const char* name, const RowsProblem& p, cudaStream_t stream) {
  const int64_t rows = p.window == Window::kNone ? kTileRows : kTileRows / 4;
  const int64_t blocks =
      (p.windows + rows - 1) / rows * ((p.columns + kTileColumns - 1) / kTileColumns);
  const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(kTileThreads),
                     kRowsSharedBytes<kTileRows>, stream};
  launch(name, multiply_tile<M, Operands, kTileRows>, grid, p);
}

// Whether the result can be written 16 bytes at a time.
inline bool writes_runs(const RowsProblem& p, int vector) {
  const uintptr_t addresses =
      reinterpret_cast<uintptr_t>(p.y) | reinterpret_cast<uintptr_t>(p.preactivation);
  return p.y_channels_last && p.columns % vector == 0 && addresses % 16 == 0 &&
         p.window != Window::kMaximumOf && p.window != Window::kAverageOf;
}

// Whether tiles of 128 rows keep every multiprocessor of a large device busy: two blocks for each.
inline bool large_tiles(const RowsProblem& p, int tile_rows) {
  if (tile_rows != 0) return tile_rows == 128;
  const int64_t rows = p.windows * (p.window == Window::kNone ? 1 : 4);
  return rows / 128 * ((p.columns + kTileColumns - 1) / kTileColumns) >= 2 * 132;
}

}  // namespace CMF_ISA
}  // namespace cmf

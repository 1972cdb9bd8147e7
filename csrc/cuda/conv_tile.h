// A block's tile of an implicit matrix product: 4 warps, 2 × 2, multiply what lies in shared
// memory.
//
// Operands lie by rows: a row of the tile (or a column) has 64 bytes a stage, four chunks of 16, in
// an order that lets 8 rows of one chunk be read without two of them meeting in a bank. A warp's
// rows are slabs of 16, as the matrix units take them.
#pragma once

#include "cuda/conv_problem.h"
#include "cuda/mma.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kTileThreads = 128;
constexpr int kTileColumns = 64;
constexpr int kStageBytes = 64;  // of a row
constexpr int kChunkBytes = 16;
constexpr int kChunks = kStageBytes / kChunkBytes;
constexpr int kColumnTiles = 4;          // of 8 columns, a warp
constexpr int kOutside = INT32_MIN / 2;  // the row or column of what no tap reaches

template <Multiply M>
struct OperandOf {
  typedef float type;
};
template <>
struct OperandOf<Multiply::kBFloat16> {
  typedef BFloat16 type;
};
template <>
struct OperandOf<Multiply::kHalf> {
  typedef Half type;
};
template <Multiply M>
using Operand = typename OperandOf<M>::type;
// Elements of a chunk.
template <Multiply M>
constexpr int kVector = kChunkBytes / static_cast<int>(sizeof(Operand<M>));

// Where chunk `chunk` of row `row` lies in a stage.
__device__ __forceinline__ int chunk_offset(int row, int chunk) {
  return row * kStageBytes + (chunk ^ (row >> 1 & (kChunks - 1))) * kChunkBytes;
}

template <Multiply M>
__device__ __forceinline__ void multiply_fragments(float (&c)[4], const uint32_t (&a)[4],
                                                   uint32_t b0, uint32_t b1) {
  if constexpr (M == Multiply::kBFloat16) {
    mma_bfloat16(c, a, b0, b1);
  } else if constexpr (M == Multiply::kHalf) {
    mma_half(c, a, b0, b1);
  } else {
    mma_tf32(c, a, b0, b1);
  }
}

template <int count>
__device__ __forceinline__ void round_all_to_tf32(uint32_t (&r)[count]) {
  CMF_UNROLL(count)
  for (int i = 0; i < count; ++i) r[i] = round_to_tf32(r[i]);
}

// c += a · b for one stage. `a` is the warp's first row of the tile's, `b` its first column.
// c[i][j] is as mma.h has it, of slab i and columns 8 j.
template <Multiply M, int kSlabs>
__device__ __forceinline__ void multiply_rows(float (&c)[kSlabs][kColumnTiles][4],
                                              const unsigned char* a, const unsigned char* b,
                                              int lane) {
  if constexpr (M == Multiply::kFloat32) {
    const int first_row = lane / 4, first_column = lane % 4 * 2;
    CMF_UNROLL(1)
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      float4 left[kSlabs][2];
      CMF_UNROLL(kSlabs)
      for (int i = 0; i < kSlabs; ++i) {
        CMF_UNROLL(2)
        for (int h = 0; h < 2; ++h) {
          const int row = 16 * i + 8 * h + first_row;
          left[i][h] = *reinterpret_cast<const float4*>(a + chunk_offset(row, chunk));
        }
      }
      CMF_UNROLL(kColumnTiles)
      for (int j = 0; j < kColumnTiles; ++j) {
        CMF_UNROLL(2)
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * j + first_column + e;
          const float4 right = *reinterpret_cast<const float4*>(b + chunk_offset(column, chunk));
          CMF_UNROLL(kSlabs)
          for (int i = 0; i < kSlabs; ++i) {
            CMF_UNROLL(2)
            for (int h = 0; h < 2; ++h) {
              float sum = c[i][j][2 * h + e];
              sum = fmaf(left[i][h].x, right.x, sum);
              sum = fmaf(left[i][h].y, right.y, sum);
              sum = fmaf(left[i][h].z, right.z, sum);
              c[i][j][2 * h + e] = fmaf(left[i][h].w, right.w, sum);
            }
          }
        }
      }
    }
  } else {
    const int a_row = lane & 15, a_chunk = lane >> 4;
    const int b_row = (lane & 7) + (lane >> 4) * 8, b_chunk = lane >> 3 & 1;
    CMF_UNROLL(2)
    for (int step = 0; step < kChunks / 2; ++step) {
      uint32_t left[kSlabs][4], right[kColumnTiles / 2][4];
      CMF_UNROLL(kSlabs)
      for (int i = 0; i < kSlabs; ++i) {
        load_matrices(left[i], a + i * 16 * kStageBytes + chunk_offset(a_row, 2 * step + a_chunk));
        if constexpr (M == Multiply::kTf32) round_all_to_tf32(left[i]);
      }
      CMF_UNROLL(kColumnTiles / 2)
      for (int j = 0; j < kColumnTiles / 2; ++j) {
        load_matrices(right[j], b + j * 16 * kStageBytes + chunk_offset(b_row, 2 * step + b_chunk));
        if constexpr (M == Multiply::kTf32) round_all_to_tf32(right[j]);
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

}  // namespace CMF_ISA
}  // namespace cmf

// The inner product of a 1x1 convolution, or of one whose patches are packed, with bias, activation
// and stores behind it: a few rows by two vectors of columns, all sums in registers.
//
// Rows are pixels and columns output channels where y is NHWC, and the other way round where it is
// NCHW: the columns lie side by side in y.
#pragma once

#include "cpu/gemm_tile.h"
#include "cpu/quick_activation.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kTileLanes = kGemmVectors * kLanes<float>;  // columns of a whole tile

struct PointwiseTile {
  const float* a;         // [runs][C / kLanes][rows][kLanes]: a row's values are broadcast
  int64_t a_row = 0;      // or elements from a row [C] to the next: rows that nobody packed,
  int64_t a_skip = 0;     // with as many between their runs, beside what fills up vectors
  const float* b;         // [runs][C][kTileLanes]
  int64_t channels;       // C
  int64_t runs = 1;       // of channels, each filled up to whole vectors in a
  const float* row_bias;  // [rows], or null for
  const float* bias;      // [vectors · kLanes]: of the columns
  float* y;
  const float* residual = nullptr;  // lies as y: what is added before the activation
  // [rows][vectors · kLanes], or null: the sums of other channels, which are added, too
  const float* sums = nullptr;
  int64_t y_row;  // elements from a row to the next
  int columns;    // that are stored
  QuickActivation act;
  bool past_caches;
  // What will be packed or read next comes into the second cache meanwhile: for every kLanes
  // channels, ahead_count pairs of lines.
  const float* ahead = nullptr;
  int64_t ahead_pair = kLineFloats;  // elements from a line to its second
  int64_t ahead_step = 0;            // from a pair to the next
  int64_t ahead_advance = 0;         // from some channels' pairs to the next ones'; 0: side by side
  int ahead_count = 0;
};

typedef void (*PointwiseKernel)(const PointwiseTile& tile);

// The kernel for 1 <= rows <= kGemmRows and 1 or 2 vectors; `apart`: for rows that nobody packed.
PointwiseKernel pointwise_kernel_for(int rows, int vectors, bool apart = false);

}  // namespace CMF_ISA
}  // namespace cmf

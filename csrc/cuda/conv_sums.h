// Sums of what several blocks have added up, in a fixed order: the same bits every time.
#pragma once

#include "cuda/conv_problem.h"
#include "cuda/runtime.h"

namespace cmf {
namespace CMF_ISA {

// out[row · stride_row + a · stride_outer + b · stride_inner] = factor · the sum over the parts of
// [parts, rows, outer, inner], the first one first.
struct PartialSums {
  const float* partial;
  void* out;
  int64_t rows;
  int64_t outer;
  int64_t inner;
  int64_t parts;
  int64_t stride_row;
  int64_t stride_outer;
  int64_t stride_inner;
  float factor;
  int32_t dtype;
};

void add_partial_sums(const PartialSums& sums, cudaStream_t stream);

}  // namespace CMF_ISA
}  // namespace cmf

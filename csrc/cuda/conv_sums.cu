#include "cuda/conv_sums.h"
#include "cuda/device_math.h"
#include "cuda/launch.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) add_parts(const __grid_constant__ PartialSums s) {
  const int64_t count = s.rows * s.outer * s.inner;
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= count) return;
  float sum = 0;
  CMF_UNROLL(4)
  for (int64_t part = 0; part < s.parts; ++part) sum += s.partial[part * count + at];
  const int64_t b = at % s.inner, a = at / s.inner % s.outer, row = at / s.inner / s.outer;
  static_cast<T*>(s.out)[row * s.stride_row + a * s.stride_outer + b * s.stride_inner] =
      from_compute<T>(sum * s.factor);
}

template <class T>
void launch_sums(const PartialSums& s, cudaStream_t stream) {
  const int64_t blocks = (s.rows * s.outer * s.inner + kThreads - 1) / kThreads;
  launch("add_partial_sums", add_parts<T>,
         Grid{dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream}, s);
}

}  // namespace

void add_partial_sums(const PartialSums& sums, cudaStream_t stream) {
  switch (static_cast<DType>(sums.dtype)) {
    case DType::kBFloat16:
      return launch_sums<BFloat16>(sums, stream);
    case DType::kFloat16:
      return launch_sums<Half>(sums, stream);
    default:
      return launch_sums<float>(sums, stream);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

// The kernels of act_pool2d, as kernel_table.h lists them, and what their files share.
#pragma once

#include "common/act_pool2d_problem.h"
#include "common/dtype.h"
#include "common/pool_window.h"

namespace cmf {
namespace CMF_ISA {

// False where scratch memory could not be had.
bool act_pool2d_forward(const ActPool2dProblem& problem, const void* x, const void* bias, void* y,
                        void* index, void* preactivation, int threads);
bool act_pool2d_backward(const ActPool2dProblem& problem, const void* dy, const void* saved,
                         const void* bias, const void* index, void* dx, void* dbias, int threads);

// Whether each plane's average is one number: a plane is then one run, not rows.
CMF_HOST_DEVICE bool averages_planes(const ActPool2dProblem& p) {
  return p.pool == Pool::kAvg && !p.channels_last && p.saved != Saved::kMask &&
         p.pool_height == p.height && p.pool_width == p.width && p.pool_pad_height == 0 &&
         p.pool_pad_width == 0;
}

CMF_HOST_DEVICE PoolAxis vertical_axis(const ActPool2dProblem& p) {
  return PoolAxis{p.height, p.out_height, p.pool_height, p.pool_stride_height, p.pool_pad_height};
}

CMF_HOST_DEVICE PoolAxis horizontal_axis(const ActPool2dProblem& p) {
  return PoolAxis{p.width, p.out_width, p.pool_width, p.pool_stride_width, p.pool_pad_width};
}

// A parallel region costs about as much as this many elements take one thread.
constexpr int64_t kElementsPerThread = 16384;

CMF_HOST_DEVICE int useful_threads(const ActPool2dProblem& p, int threads) {
  const int64_t elements = p.batch * p.channels * p.height * p.width;
  const int64_t most = elements / kElementsPerThread;
  if (most <= 1) return 1;
  return most < threads ? static_cast<int>(most) : threads;
}

}  // namespace CMF_ISA
}  // namespace cmf

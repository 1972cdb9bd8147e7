#include "cuda/shim/examples.h"

#include <stdexcept>
#include <string>

#include "cuda/async_copy.h"
#include "cuda/launch.h"

namespace cmf {
namespace shim {
namespace {

constexpr int kThreads = 96;

// Each value becomes its right neighbour's, the last the first's.
template <bool kBarrier>
__global__ void rotate(float* values) {
  CMF_SHARED(float[kThreads], tile);
  const unsigned t = threadIdx.x;
  tile[t] = values[t];
  if (kBarrier) __syncthreads();
  values[t] = tile[(t + 1) % kThreads];
}

// The same through cp.async.
template <bool kWait, bool kBarrier>
__global__ void rotate_async(float* values) {
  CMF_DYNAMIC_SHARED(float, tile);
  const unsigned t = threadIdx.x;
  cuda_shim::copy_async<4>(tile + t, values + t);
  cuda_shim::commit_copies();
  if (kWait) cuda_shim::wait_copies<0>();
  if (kBarrier) __syncthreads();
  values[t] = tile[(t + 1) % kThreads];
}

// Each value becomes its warp's sum.
__global__ void warp_sum(float* values) {
  float sum = values[threadIdx.x];
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  values[threadIdx.x] = sum;
}

// 1 where the lane's value is positive and its neighbour's too, by votes and shuffles of halves.
__global__ void votes(float* values) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  const float value = values[threadIdx.x];
  const unsigned positive = __ballot_sync(half, value > 0);
  const float next = __shfl_down_sync(half, value, 1, 16);
  const bool all = __all_sync(half, value > 0) != 0, any = __any_sync(half, value > 0) != 0;
  const bool consistent = all == (positive == half) && any == (positive != 0);
  values[threadIdx.x] = consistent && value > 0 && next > 0 ? 1 : 0;
}

__global__ void half_a_barrier(float* values) {
  if (threadIdx.x < 64) __syncthreads();
  values[threadIdx.x] = 0;
}

__global__ void two_barriers(float* values) {
  if (threadIdx.x < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  values[threadIdx.x] = 0;
}

__global__ void lane_that_left(float* values) {
  if (threadIdx.x % 32 == 7) return;
  values[threadIdx.x] = __shfl_xor_sync(0xffffffffu, values[threadIdx.x], 1);
}

__global__ void different_calls(float* values) {
  const float value = values[threadIdx.x];
  values[threadIdx.x] = threadIdx.x % 2 ? __shfl_xor_sync(0xffffffffu, value, 1)
                                        : __shfl_down_sync(0xffffffffu, value, 1);
}

__global__ void misaligned(float* values) {
  const float4 four = __ldg(reinterpret_cast<const float4*>(values + 1));
  values[0] = four.x;
}

__global__ void behind_shared(float*) {
  CMF_DYNAMIC_SHARED(float, tile);
  if (threadIdx.x == 0) tile[kThreads] = 1;
}

__global__ void unwritten_shared(float* values) {
  CMF_SHARED(float[kThreads], tile);
  values[threadIdx.x] = tile[threadIdx.x];
}

__global__ void block_index(float* values) {
  if (threadIdx.x == 0) values[blockIdx.x] = values[0] + 1;  // a race between blocks
}

// Threads 0-31 hand a value to 32-63 through a barrier of those 64; 64-95 take no part.
__global__ void named_barrier(float* values) {
  CMF_SHARED(float[32], tile);
  const unsigned t = threadIdx.x;
  if (t < 32) tile[t] = values[t];
  if (t < 64) block_barrier(Site{__FILE__, __LINE__}, 1, 64);
  if (t >= 32 && t < 64) values[t] = tile[t - 32];
}

struct Example {
  const char* name;
  void (*kernel)(float*);
};
const Example kExamples[] = {
    {"rotate", rotate<true>},
    {"rotate_without_barrier", rotate<false>},
    {"rotate_async", rotate_async<true, true>},
    {"rotate_async_without_wait", rotate_async<false, true>},
    {"rotate_async_without_barrier", rotate_async<true, false>},
    {"warp_sum", warp_sum},
    {"votes", votes},
    {"half_a_barrier", half_a_barrier},
    {"two_barriers", two_barriers},
    {"lane_that_left", lane_that_left},
    {"different_calls", different_calls},
    {"misaligned", misaligned},
    {"behind_shared", behind_shared},
    {"unwritten_shared", unwritten_shared},
    {"block_index", block_index},
    {"named_barrier", named_barrier},
};

}  // namespace

void run_example(const char* name, float* values, int count) {
  for (const Example& example : kExamples) {
    if (std::string(name) != example.name) continue;
    const bool blocks = example.kernel == block_index;
    if (count != (blocks ? 4 : kThreads)) throw std::invalid_argument("not the example's count");
    cuda_shim::launch(
        name, example.kernel,
        cuda_shim::Grid{dim3(blocks ? 4 : 1), dim3(kThreads), kThreads * sizeof(float), nullptr},
        values);
    return;
  }
  throw std::invalid_argument(std::string("no example ") + name);
}

}  // namespace shim
}  // namespace cmf

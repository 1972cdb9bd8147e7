// What kernels use of CUDA, for a host compiler: names, warps and barriers of block.h's emulator,
// arithmetic of libm. Kernel sources include it through cuda/runtime.h and see no difference.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cuda/shim/block.h"

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

typedef void* cudaStream_t;

// -- vectors in memory --
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(4) ushort2 {
  uint16_t x, y;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return uint2{x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return uint4{x, y, z, w};
}
inline float2 make_float2(float x, float y) { return float2{x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }

namespace cmf {
namespace shim {

#define CMF_SITE \
  ::cmf::shim::Site { file, line }
#define CMF_SITE_ARGUMENTS const char *file = __builtin_FILE(), int line = __builtin_LINE()

// A vector access at an address that the hardware would fault on.
template <class T>
inline void check_aligned(const T* at, CMF_SITE_ARGUMENTS) {
  if (reinterpret_cast<uintptr_t>(at) % alignof(T)) fail("a misaligned vector access", CMF_SITE);
}

template <class In, class Out>
struct Collective {
  typedef void (*Function)(unsigned mask, const In* const* in, Out* const* out);
};

// One call of all lanes of `mask`: the last one to arrive computes every lane's result from every
// lane's input (null where the lane is not in the mask).
template <class Out, class In>
inline Out collective(unsigned mask, const char* name, const In& in,
                      typename Collective<In, Out>::Function combine, Site site) {
  Out out;
  // pointers to objects are alike
  warp_collective(mask, name, &in, &out, reinterpret_cast<Combine>(combine), site);
  return out;
}

template <class T>
struct Shuffled {
  T value;
  unsigned source;  // lane, or >= 32: its own
};

template <class T>
inline T shuffle(unsigned mask, T value, unsigned source, const char* name, Site site) {
  const Shuffled<T> in = {value, source};
  struct Result {
    T value;
    bool valid;
  };
  const Result result = collective<Result, Shuffled<T> >(
      mask, name, in,
      [](unsigned, const Shuffled<T>* const* inputs, Result* const* outputs) {
        for (int lane = 0; lane < kWarpSize; ++lane) {
          if (!outputs[lane]) continue;
          const unsigned from = inputs[lane]->source < 32 ? inputs[lane]->source : lane;
          outputs[lane]->valid = inputs[from] != nullptr;
          if (inputs[from]) outputs[lane]->value = inputs[from]->value;
        }
      },
      site);
  if (!result.valid) fail("a shuffle reads a lane that takes no part", site);
  return result.value;
}

inline unsigned ballot(unsigned mask, bool predicate, const char* name, Site site) {
  return collective<unsigned, bool>(
      mask, name, predicate,
      [](unsigned, const bool* const* inputs, unsigned* const* outputs) {
        unsigned bits = 0;
        for (int lane = 0; lane < kWarpSize; ++lane) {
          if (inputs[lane] && *inputs[lane]) bits |= 1u << lane;
        }
        for (int lane = 0; lane < kWarpSize; ++lane) {
          if (outputs[lane]) *outputs[lane] = bits;
        }
      },
      site);
}

}  // namespace shim
}  // namespace cmf

// -- barriers --
inline void __syncthreads(CMF_SITE_ARGUMENTS) { cmf::shim::block_barrier(CMF_SITE); }
inline int __syncthreads_count(int predicate, CMF_SITE_ARGUMENTS) {
  return static_cast<int>(cmf::shim::block_sum(predicate ? 1 : 0, CMF_SITE));
}
inline int __syncthreads_or(int predicate, CMF_SITE_ARGUMENTS) {
  return cmf::shim::block_sum(predicate ? 1 : 0, CMF_SITE) != 0;
}
inline int __syncthreads_and(int predicate, CMF_SITE_ARGUMENTS) {
  return cmf::shim::block_sum(predicate ? 0 : 1, CMF_SITE) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CMF_SITE_ARGUMENTS) {
  cmf::shim::ballot(mask, false, "__syncwarp", CMF_SITE);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// -- warps --
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, CMF_SITE_ARGUMENTS) {
  const unsigned lane = cmf::shim::lane_index();
  const unsigned segment = lane & ~static_cast<unsigned>(width - 1);
  const unsigned from = segment + (static_cast<unsigned>(source) & (width - 1));
  return cmf::shim::shuffle(mask, value, from, "__shfl_sync", CMF_SITE);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CMF_SITE_ARGUMENTS) {
  const unsigned lane = cmf::shim::lane_index();
  const unsigned from = lane ^ static_cast<unsigned>(lanes);
  const bool inside = from / width <= lane / width;
  return cmf::shim::shuffle(mask, value, inside ? from : 32, "__shfl_xor_sync", CMF_SITE);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          CMF_SITE_ARGUMENTS) {
  const unsigned lane = cmf::shim::lane_index();
  const bool inside = lane % width + delta < static_cast<unsigned>(width);
  return cmf::shim::shuffle(mask, value, inside ? lane + delta : 32, "__shfl_down_sync", CMF_SITE);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                        CMF_SITE_ARGUMENTS) {
  const unsigned lane = cmf::shim::lane_index();
  const bool inside = lane % width >= delta;
  return cmf::shim::shuffle(mask, value, inside ? lane - delta : 32, "__shfl_up_sync", CMF_SITE);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CMF_SITE_ARGUMENTS) {
  return cmf::shim::ballot(mask, predicate != 0, "__ballot_sync", CMF_SITE);
}
inline int __any_sync(unsigned mask, int predicate, CMF_SITE_ARGUMENTS) {
  return cmf::shim::ballot(mask, predicate != 0, "__any_sync", CMF_SITE) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CMF_SITE_ARGUMENTS) {
  return cmf::shim::ballot(mask, predicate == 0, "__all_sync", CMF_SITE) == 0;
}
inline unsigned __activemask() { return 1u << cmf::shim::lane_index(); }  // whoever runs now

// -- memory --
template <class T>
inline T __ldg(const T* at) {
  cmf::shim::check_aligned(at);
  return *at;
}
template <class T>
inline T __ldcs(const T* at) {
  return __ldg(at);
}
template <class T>
inline void __stcs(T* at, T value) {
  cmf::shim::check_aligned(at);
  *at = value;
}
template <class T>
inline T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}
template <class T>
inline T atomicMax(T* at, T value) {
  const T before = *at;
  if (before < value) *at = value;
  return before;
}
template <class T>
inline T atomicOr(T* at, T value) {
  const T before = *at;
  *at = before | value;
  return before;
}
inline unsigned atomicInc(unsigned* at, unsigned most) {
  const unsigned before = *at;
  *at = before >= most ? 0 : before + 1;
  return before;
}

// -- integers and bits --
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline unsigned __cvta_generic_to_shared(const void* at) {
  return static_cast<unsigned>(static_cast<const char*>(at) -
                               static_cast<const char*>(cmf::shim::dynamic_shared()));
}

// -- fast arithmetic --
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 1 ? 1.0f : x > 0 ? x : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}

// Copies from global to shared memory that pass no register (cp.async, sm_80). What was copied may
// be read after wait_copies and, by other threads, after a barrier behind it.
#pragma once

#include "cuda/runtime.h"

namespace cmf {
namespace CMF_ISA {

// `bytes` is 4, 8 or 16, and both addresses are multiples of it. With `valid` false the target is
// filled with zeros and nothing is read.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if defined(CMF_CUDA_SHIM)
  shim::async_copy(shared, valid ? global : shared, kBytes, valid ? kBytes : 0,
                   shim::Site{__FILE__, __LINE__});
#else
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int read = valid ? kBytes : 0;
  if (kBytes == 16) {  // past L1, which no other thread would find it in
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global),
                 "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(global),
                 "n"(kBytes), "r"(read)
                 : "memory");
  }
#endif
}

// The copies issued since the last call are a group.
__device__ __forceinline__ void commit_copies() {
#if defined(CMF_CUDA_SHIM)
  shim::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `kInFlight` of this thread's latest groups are still on their way.
template <int kInFlight>
__device__ __forceinline__ void wait_copies() {
#if defined(CMF_CUDA_SHIM)
  shim::async_wait(kInFlight);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight) : "memory");
#endif
}

}  // namespace CMF_ISA
}  // namespace cmf

// CUDA's language for the kernels of this folder: nvcc's own, or the emulator's (shim/), which a
// host compiler takes. CMF_CUDA_SHIM says which.
#pragma once

#if defined(CMF_CUDA_SHIM)

#include "cuda/shim/cuda_shim.h"

// A kernel's shared memory: `CMF_SHARED(float[4][32], tile)`. The type's objects are not
// constructed.
#define CMF_SHARED(type, name)                                                \
  static const char name##_key = 0;                                           \
  ::cmf::shim::Plain<type>& name =                                            \
      *static_cast< ::cmf::shim::Plain<type>*>(::cmf::shim::static_shared(    \
          &name##_key, sizeof(type), alignof(type) > 16 ? alignof(type) : 16, \
          ::cmf::shim::Site{__FILE__, __LINE__}))
// What the launch asked for.
#define CMF_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(::cmf::shim::dynamic_shared())
#define CMF_UNROLL(n)

namespace cmf {
namespace shim {
template <class T>
using Plain = T;
}  // namespace shim
}  // namespace cmf

#else

#include <cuda_runtime.h>

namespace cmf {
template <class T>
using Plain = T;
}  // namespace cmf

#define CMF_SHARED(type, name) __shared__ __align__(16)::cmf::Plain<type> name
#define CMF_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char cmf_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(cmf_dynamic_shared)
#define CMF_PRAGMA(text) _Pragma(#text)
#define CMF_UNROLL(n) CMF_PRAGMA(unroll n)

#endif

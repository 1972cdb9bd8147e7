// Storage types and the type that their arithmetic runs in.
#pragma once

#include <stdint.h>

#ifndef CMF_ISA
#error "CMF_ISA names the instruction set (or device) that this file is compiled for"
#endif

#if defined(__CUDACC__)
#define CMF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CMF_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Everything that several instruction sets compile lives in a namespace of its own for each: if an
// inline function were shared, the linker could keep the copy with the widest instructions and an
// older CPU would meet them.
namespace cmf {
namespace CMF_ISA {

enum class DType : int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// Half types are storage alone: they are read into float32 and rounded once when written.
template <class T>
struct ComputeTypeOf {
  typedef float type;
};
template <>
struct ComputeTypeOf<double> {
  typedef double type;
};
template <class T>
using ComputeType = typename ComputeTypeOf<T>::type;

}  // namespace CMF_ISA
}  // namespace cmf

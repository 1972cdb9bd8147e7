// Scalar arithmetic for common/activation.h and common/gan_loss.h, and the storage types' way in
// and out of it. On the device CUDA's own functions, in the emulator libm's; both within a few ulp.
#pragma once

#include "common/dtype.h"
#include "cuda/runtime.h"
#if defined(CMF_CUDA_SHIM)
#include "cpu/half.h"
#endif

namespace cmf {
namespace CMF_ISA {

template <class V>
CMF_HOST_DEVICE V select(bool condition, V if_true, V if_false) {
  return condition ? if_true : if_false;
}

CMF_HOST_DEVICE float exp(float x) { return ::expf(x); }
CMF_HOST_DEVICE double exp(double x) { return ::exp(x); }
CMF_HOST_DEVICE float expm1(float x) { return ::expm1f(x); }
CMF_HOST_DEVICE double expm1(double x) { return ::expm1(x); }
CMF_HOST_DEVICE float log(float x) { return ::logf(x); }
CMF_HOST_DEVICE double log(double x) { return ::log(x); }
CMF_HOST_DEVICE float log1p(float x) { return ::log1pf(x); }
CMF_HOST_DEVICE double log1p(double x) { return ::log1p(x); }
CMF_HOST_DEVICE float tanh(float x) { return ::tanhf(x); }
CMF_HOST_DEVICE double tanh(double x) { return ::tanh(x); }
CMF_HOST_DEVICE float erf(float x) { return ::erff(x); }
CMF_HOST_DEVICE double erf(double x) { return ::erf(x); }

template <class C>
CMF_HOST_DEVICE C quotient(C n, C d) {
  return n / d;
}

template <class C>
CMF_HOST_DEVICE C sigmoid(C x) {
  return C(1) / (C(1) + exp(-x));
}

// log(1 + e^x) for x up to F.softplus's threshold of 20
template <class C>
CMF_HOST_DEVICE C softplus(C x) {
  return log1p(exp(x));
}

#if !defined(CMF_CUDA_SHIM)

// Without cuda_fp16.h and cuda_bf16.h, whose classes take longer to compile than the kernels.
__device__ __forceinline__ float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

template <class C>
__device__ __forceinline__ C to_compute(float value) {
  return value;
}
template <class C>
__device__ __forceinline__ C to_compute(double value) {
  return value;
}
template <class C>
__device__ __forceinline__ C to_compute(Half value) {
  return to_float(value);
}
template <class C>
__device__ __forceinline__ C to_compute(BFloat16 value) {
  return to_float(value);
}

template <class T>
struct Rounded {  // float and double are their own
  static __device__ __forceinline__ T from(T value) { return value; }
};
template <>
struct Rounded<Half> {
  static __device__ __forceinline__ Half from(float value) {
    Half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
  }
};
template <>
struct Rounded<BFloat16> {
  static __device__ __forceinline__ BFloat16 from(float value) {
    BFloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
  }
};
template <class T>
__device__ __forceinline__ T from_compute(ComputeType<T> value) {
  return Rounded<T>::from(value);
}

#endif

}  // namespace CMF_ISA
}  // namespace cmf

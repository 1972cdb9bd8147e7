// The vector types and what works on values alone.
#pragma once

#include "common/dtype.h"

#if defined(__AVX512F__)
#define CMF_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CMF_VECTOR_BYTES 32
#else
#define CMF_VECTOR_BYTES 16
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace cmf {
namespace CMF_ISA {

template <class C>
struct VectorTypes;

template <>
struct VectorTypes<float> {
  typedef float Value __attribute__((vector_size(CMF_VECTOR_BYTES)));
  typedef int32_t Integer __attribute__((vector_size(CMF_VECTOR_BYTES)));
  typedef uint32_t Unsigned __attribute__((vector_size(CMF_VECTOR_BYTES)));
  typedef uint16_t Short __attribute__((vector_size(CMF_VECTOR_BYTES / 2)));
  typedef uint8_t Byte __attribute__((vector_size(CMF_VECTOR_BYTES / 4)));
};

template <>
struct VectorTypes<double> {
  typedef double Value __attribute__((vector_size(CMF_VECTOR_BYTES)));
  typedef int64_t Integer __attribute__((vector_size(CMF_VECTOR_BYTES)));
  typedef uint64_t Unsigned __attribute__((vector_size(CMF_VECTOR_BYTES)));
  typedef uint8_t Byte __attribute__((vector_size(CMF_VECTOR_BYTES / 8)));
};

template <class C>
using Vec = typename VectorTypes<C>::Value;
// What a comparison of two Vec<C> gives (all ones or zero in each lane); also plain integers.
template <class C>
using Mask = typename VectorTypes<C>::Integer;

template <class C>
constexpr int kLanes = CMF_VECTOR_BYTES / static_cast<int>(sizeof(C));

// Vec<C> + scalar is the language's own; this is for where a Vec must come first.
template <class C>
CMF_HOST_DEVICE Vec<C> broadcast(C value) {
  return value - Vec<C>{};  // not {} + value: that would turn -0.0 into 0.0
}

template <class C>
CMF_HOST_DEVICE Mask<C> broadcast_integer(int value) {
  return Mask<C>{} + value;
}

template <class C>
CMF_HOST_DEVICE Mask<C> iota(int start, int step) {
  Mask<C> result = Mask<C>{};
  for (int lane = 0; lane < kLanes<C>; ++lane) result[lane] = start + step * lane;
  return result;
}

template <class V, class M>
CMF_HOST_DEVICE V select(M mask, V if_true, V if_false) {
  return mask ? if_true : if_false;
}

template <class V>
CMF_HOST_DEVICE auto is_nan(V value) -> decltype(value != value) {
  return value != value;
}

// Whether any lane is NaN.
CMF_HOST_DEVICE bool any_nan(VectorTypes<float>::Value value) {
#if defined(__AVX512F__)
  __m512 lanes;
  __builtin_memcpy(&lanes, &value, sizeof lanes);
  return _mm512_cmp_ps_mask(lanes, lanes, _CMP_UNORD_Q) != 0;
#elif defined(__AVX2__)
  __m256 lanes;
  __builtin_memcpy(&lanes, &value, sizeof lanes);
  return _mm256_movemask_ps(_mm256_cmp_ps(lanes, lanes, _CMP_UNORD_Q)) != 0;
#else
  const VectorTypes<float>::Integer nan = value != value;
  uint64_t halves[2];
  __builtin_memcpy(halves, &nan, sizeof halves);
  return (halves[0] | halves[1]) != 0;
#endif
}

template <class To, class From>
CMF_HOST_DEVICE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To result;
  __builtin_memcpy(&result, &value, sizeof result);
  return result;
}

}  // namespace CMF_ISA
}  // namespace cmf

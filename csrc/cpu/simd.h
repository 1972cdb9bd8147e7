// A width-generic vector of float or double on the compiler's vector extensions.
//
// One kernel source is compiled for every instruction set; the width follows from what the compiler
// may use. Arithmetic, comparisons and `mask ? a : b` are the language's own; this file adds what the
// language lacks: loads and stores of every storage type, narrow bytes, and (de)interleaving.
#pragma once

#include "common/dtype.h"
#include "cpu/half.h"

#if defined(__AVX512F__)
#define CMF_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CMF_VECTOR_BYTES 32
#else
#define CMF_VECTOR_BYTES 16
#endif

#if defined(__F16C__)
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
  typedef uint16_t Short __attribute__((vector_size(CMF_VECTOR_BYTES / 4)));
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

template <class V, class M>
CMF_HOST_DEVICE V select(M mask, V if_true, V if_false) {
  return mask ? if_true : if_false;
}

template <class V>
CMF_HOST_DEVICE auto is_nan(V value) -> decltype(value != value) {
  return value != value;
}

template <class To, class From>
CMF_HOST_DEVICE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To result;
  __builtin_memcpy(&result, &value, sizeof result);
  return result;
}

// Loads: kLanes<C> values of storage type T, unaligned.

template <class C>
CMF_HOST_DEVICE Vec<C> load(const C* source) {
  Vec<C> result;
  __builtin_memcpy(&result, source, sizeof result);
  return result;
}

template <class C>
CMF_HOST_DEVICE Vec<C> load(const BFloat16* source) {
  typename VectorTypes<C>::Short bits;
  __builtin_memcpy(&bits, source, sizeof bits);
  return bit_cast<Vec<C>>(__builtin_convertvector(bits, typename VectorTypes<C>::Unsigned) << 16);
}

template <class C>
CMF_HOST_DEVICE Vec<C> load(const Half* source) {
#if defined(__AVX512F__)
  return bit_cast<Vec<C>>(
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))));
#elif defined(__F16C__)
  return bit_cast<Vec<C>>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
#else
  Vec<C> result;
  for (int lane = 0; lane < kLanes<C>; ++lane) result[lane] = to_float(source[lane]);
  return result;
#endif
}

// Stores: round to nearest even into storage type T, unaligned.

template <class C>
CMF_HOST_DEVICE void store(C* target, Vec<C> value) {
  __builtin_memcpy(target, &value, sizeof value);
}

template <class C>
CMF_HOST_DEVICE void store(BFloat16* target, Vec<C> value) {
  typedef typename VectorTypes<C>::Unsigned Unsigned;
  const Unsigned bits = bit_cast<Unsigned>(value);
  const Unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Unsigned kept = is_nan(value) ? (bits | 0x400000u) : rounded;
  const typename VectorTypes<C>::Short narrow =
      __builtin_convertvector(kept >> 16, typename VectorTypes<C>::Short);
  __builtin_memcpy(target, &narrow, sizeof narrow);
}

template <class C>
CMF_HOST_DEVICE void store(Half* target, Vec<C> value) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                      _mm512_cvtps_ph(bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target),
                   _mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kLanes<C>; ++lane) target[lane] = to_half(value[lane]);
#endif
}

// The first `count` < kLanes<C> values; memory behind them is neither read nor written.

template <class C, class T>
CMF_HOST_DEVICE Vec<C> load_partial(const T* source, int count, C fill = C(0)) {
  T padded[kLanes<C>];
  const T filler = from_compute<T>(fill);
  for (int lane = 0; lane < kLanes<C>; ++lane) padded[lane] = filler;
  for (int lane = 0; lane < count; ++lane) padded[lane] = source[lane];
  return load<C>(padded);
}

template <class C, class T>
CMF_HOST_DEVICE void store_partial(T* target, Vec<C> value, int count) {
  T padded[kLanes<C>];
  store<C>(padded, value);
  for (int lane = 0; lane < count; ++lane) target[lane] = padded[lane];
}

// Integers 0..255 of each lane as bytes.

template <class C>
CMF_HOST_DEVICE void store_bytes(uint8_t* target, Mask<C> value) {
  const typename VectorTypes<C>::Byte narrow =
      __builtin_convertvector(value, typename VectorTypes<C>::Byte);
  __builtin_memcpy(target, &narrow, sizeof narrow);
}

template <class C>
CMF_HOST_DEVICE Mask<C> load_bytes(const uint8_t* source) {
  typename VectorTypes<C>::Byte bytes;
  __builtin_memcpy(&bytes, source, sizeof bytes);
  return __builtin_convertvector(bytes, Mask<C>);
}

template <class C>
CMF_HOST_DEVICE void store_bytes_partial(uint8_t* target, Mask<C> value, int count) {
  for (int lane = 0; lane < count; ++lane) target[lane] = static_cast<uint8_t>(value[lane]);
}

template <class C>
CMF_HOST_DEVICE Mask<C> load_bytes_partial(const uint8_t* source, int count) {
  Mask<C> result = Mask<C>{};
  for (int lane = 0; lane < count; ++lane) result[lane] = source[lane];
  return result;
}

// x0 x1 x2 x3 ... -> even x0 x2 ..., odd x1 x3 ...; `first` holds the lower half of the sequence.
// The index vectors are folded into the shuffle's immediate or a constant by the compiler.

template <class C>
CMF_HOST_DEVICE Mask<C> iota(int start, int step) {
  Mask<C> result = Mask<C>{};
  for (int lane = 0; lane < kLanes<C>; ++lane) result[lane] = start + step * lane;
  return result;
}

#if defined(__clang__)
template <class C, int... Lane>
struct Shuffles {
  static CMF_HOST_DEVICE Vec<C> even(Vec<C> a, Vec<C> b) {
    return __builtin_shufflevector(a, b, (2 * Lane)...);
  }
  static CMF_HOST_DEVICE Vec<C> odd(Vec<C> a, Vec<C> b) {
    return __builtin_shufflevector(a, b, (2 * Lane + 1)...);
  }
  static CMF_HOST_DEVICE Vec<C> low(Vec<C> a, Vec<C> b) {
    return __builtin_shufflevector(a, b, (Lane / 2 + (Lane % 2) * int(sizeof...(Lane)))...);
  }
  static CMF_HOST_DEVICE Vec<C> high(Vec<C> a, Vec<C> b) {
    return __builtin_shufflevector(
        a, b, (int(sizeof...(Lane)) / 2 + Lane / 2 + (Lane % 2) * int(sizeof...(Lane)))...);
  }
};
template <class C, int N, int... Lane>
struct ShufflesOf : ShufflesOf<C, N - 1, N - 1, Lane...> {};
template <class C, int... Lane>
struct ShufflesOf<C, 0, Lane...> : Shuffles<C, Lane...> {};

template <class C>
CMF_HOST_DEVICE void deinterleave(Vec<C> first, Vec<C> second, Vec<C>* even, Vec<C>* odd) {
  *even = ShufflesOf<C, kLanes<C>>::even(first, second);
  *odd = ShufflesOf<C, kLanes<C>>::odd(first, second);
}

template <class C>
CMF_HOST_DEVICE void interleave(Vec<C> even, Vec<C> odd, Vec<C>* first, Vec<C>* second) {
  *first = ShufflesOf<C, kLanes<C>>::low(even, odd);
  *second = ShufflesOf<C, kLanes<C>>::high(even, odd);
}
#else
template <class C>
CMF_HOST_DEVICE void deinterleave(Vec<C> first, Vec<C> second, Vec<C>* even, Vec<C>* odd) {
  *even = __builtin_shuffle(first, second, iota<C>(0, 2));
  *odd = __builtin_shuffle(first, second, iota<C>(1, 2));
}

template <class C>
CMF_HOST_DEVICE void interleave(Vec<C> even, Vec<C> odd, Vec<C>* first, Vec<C>* second) {
  Mask<C> low = Mask<C>{};
  for (int lane = 0; lane < kLanes<C>; ++lane) low[lane] = lane / 2 + (lane % 2) * kLanes<C>;
  *first = __builtin_shuffle(even, odd, low);
  *second = __builtin_shuffle(even, odd, low + kLanes<C> / 2);
}
#endif

// The lanes' sum, halves first: one fixed order.
template <class C>
CMF_HOST_DEVICE C reduce_add(Vec<C> value) {
  C lanes[kLanes<C>];
  store<C>(lanes, value);
  for (int width = kLanes<C> / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace CMF_ISA
}  // namespace cmf

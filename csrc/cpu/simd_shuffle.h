// Moves between lanes: (de)interleaving and the sum of a vector.
#pragma once

#include "cpu/simd_memory.h"
#include "cpu/simd_types.h"

namespace cmf {
namespace CMF_ISA {

// Lane l of the result is lane `lanes[l]` of the vector.
CMF_HOST_DEVICE Vec<float> permute(Vec<float> value, Mask<float> lanes) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(
      _mm512_permutexvar_ps(bit_cast<__m512i>(lanes), bit_cast<__m512>(value)));
#elif defined(__AVX2__)
  return bit_cast<Vec<float>>(
      _mm256_permutevar8x32_ps(bit_cast<__m256>(value), bit_cast<__m256i>(lanes)));
#else
  Vec<float> result = {};
  for (int lane = 0; lane < kLanes<float>; ++lane) result[lane] = value[lanes[lane]];
  return result;
#endif
}

// The same where lanes[l] is one of the four lanes around l.
CMF_HOST_DEVICE Vec<float> permute_quads(Vec<float> value, Mask<float> lanes) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return bit_cast<Vec<float>>(
      _mm256_permutevar_ps(bit_cast<__m256>(value), bit_cast<__m256i>(lanes)));
#else
  return permute(value, lanes);
#endif
}

// deinterleave: x0 x1 x2 x3 ... -> even x0 x2 ..., odd x1 x3 ...; `first` holds the lower half of
// the sequence. interleave is its inverse. The index vectors are constants once inlined.

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

#if defined(__AVX2__) && !defined(__AVX512F__)
// GCC takes four full permutes and two blends.
template <>
CMF_HOST_DEVICE void deinterleave<float>(Vec<float> first, Vec<float> second, Vec<float>* even,
                                         Vec<float>* odd) {
  const __m256 a = bit_cast<__m256>(first);
  const __m256 b = bit_cast<__m256>(second);
  // 128-bit halves on their own: x0 x2 y0 y2 | x4 x6 y4 y6, then quarters into order
  const __m256d evens = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
  const __m256d odds = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
  *even = bit_cast<Vec<float>>(_mm256_permute4x64_pd(evens, 0xd8));
  *odd = bit_cast<Vec<float>>(_mm256_permute4x64_pd(odds, 0xd8));
}
#endif

template <class C>
CMF_HOST_DEVICE void interleave(Vec<C> even, Vec<C> odd, Vec<C>* first, Vec<C>* second) {
  Mask<C> low = Mask<C>{};
  for (int lane = 0; lane < kLanes<C>; ++lane) low[lane] = lane / 2 + (lane % 2) * kLanes<C>;
  *first = __builtin_shuffle(even, odd, low);
  *second = __builtin_shuffle(even, odd, low + kLanes<C> / 2);
}
#endif

// The lanes' sum: the upper half is added to the lower until one is left. One fixed order.
template <class C, int kBytes>
struct SumHalves {
  typedef C Whole __attribute__((vector_size(kBytes)));
  typedef C Part __attribute__((vector_size(kBytes / 2)));
  static CMF_HOST_DEVICE C sum(Whole value) {
    Part halves[2];
    __builtin_memcpy(halves, &value, sizeof halves);
    return SumHalves<C, kBytes / 2>::sum(halves[0] + halves[1]);
  }
};
template <class C>
struct SumHalves<C, 16> {
  typedef C Whole __attribute__((vector_size(16)));
  static CMF_HOST_DEVICE C sum(Whole value) {
    C lanes[16 / sizeof(C)];
    __builtin_memcpy(lanes, &value, sizeof lanes);
    if (sizeof(C) == 8) return lanes[0] + lanes[1];
    return (lanes[0] + lanes[16 / sizeof(C) - 2]) + (lanes[1] + lanes[16 / sizeof(C) - 1]);
  }
};

template <class C>
CMF_HOST_DEVICE C reduce_add(Vec<C> value) {
  return SumHalves<C, CMF_VECTOR_BYTES>::sum(value);
}

}  // namespace CMF_ISA
}  // namespace cmf

// Loads and stores of every storage type, whole and partial, and of narrow bytes.
//
// Intrinsics stand only where a compiler's own code for the generic form was found to be poor: GCC
// takes conversions that change the width by more than two apart into scalars, and turns copies of
// a variable length into calls of memcpy.
#pragma once

#include "cpu/half.h"
#include "cpu/simd_types.h"

namespace cmf {
namespace CMF_ISA {

// Whole vectors: kLanes<C> values of storage type T, unaligned. What lies in memory as 16 bits a
// lane passes through Narrow.

template <class C>
CMF_HOST_DEVICE Vec<C> load(const C* source) {
  Vec<C> result;
  __builtin_memcpy(&result, source, sizeof result);
  return result;
}

template <class C>
CMF_HOST_DEVICE void store(C* target, Vec<C> value) {
  __builtin_memcpy(target, &value, sizeof value);
}

typedef VectorTypes<float>::Short Narrow;

CMF_HOST_DEVICE Vec<float> widen(Narrow bits, BFloat16) {
  return bit_cast<Vec<float>>(__builtin_convertvector(bits, VectorTypes<float>::Unsigned) << 16);
}

// Round to nearest even; NaN keeps its upper bits and becomes quiet.
CMF_HOST_DEVICE Narrow narrow(Vec<float> value, BFloat16) {
  typedef VectorTypes<float>::Unsigned Unsigned;
  const Unsigned bits = bit_cast<Unsigned>(value);
  const Unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Unsigned kept = is_nan(value) ? (bits | 0x400000u) : rounded;
  return __builtin_convertvector(kept >> 16, Narrow);
}

#if defined(__AVX512F__)
CMF_HOST_DEVICE Vec<float> widen(Narrow bits, Half) {
  return bit_cast<Vec<float>>(_mm512_maskz_cvtph_ps(__mmask16(-1), bit_cast<__m256i>(bits)));
}
CMF_HOST_DEVICE Narrow narrow(Vec<float> value, Half) {
  return bit_cast<Narrow>(
      _mm512_maskz_cvtps_ph(__mmask16(-1), bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
CMF_HOST_DEVICE Vec<float> widen(Narrow bits, Half) {
  return bit_cast<Vec<float>>(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
}
CMF_HOST_DEVICE Narrow narrow(Vec<float> value, Half) {
  return bit_cast<Narrow>(_mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__aarch64__)
typedef __fp16 HalfLanes __attribute__((vector_size(CMF_VECTOR_BYTES / 2)));
CMF_HOST_DEVICE Vec<float> widen(Narrow bits, Half) {
  return __builtin_convertvector(bit_cast<HalfLanes>(bits), Vec<float>);
}
CMF_HOST_DEVICE Narrow narrow(Vec<float> value, Half) {
  return bit_cast<Narrow>(__builtin_convertvector(value, HalfLanes));
}
#else
// The scalar functions of half.h without their branches. Magnitudes are below 2^31: signed
// integers, which every instruction set compares.
CMF_HOST_DEVICE Vec<float> widen(Narrow narrow_bits, Half) {
  typedef Mask<float> Bits;
  const Bits bits = __builtin_convertvector(narrow_bits, Bits);
  const Bits magnitude = (bits & 0x7fff) << 13;
  const Bits sign = bits ^ (bits & 0x7fff);
  // subnormals: the mantissa times 2^-24, an exact difference of two numbers of exponent 2^-14
  const Bits subnormal = bit_cast<Bits>(bit_cast<Vec<float>>(magnitude + 0x38800000) - 0x1p-14f);
  const Bits quiet = (magnitude > 0x0f800000) & 0x400000;
  const Bits special = magnitude | quiet | 0x7f800000;
  const Bits finite = magnitude < 0x00800000 ? subnormal : magnitude + (112 << 23);
  const Bits value = magnitude >= 0x0f800000 ? special : finite;
  typedef VectorTypes<float>::Unsigned Unsigned;
  return bit_cast<Vec<float>>(bit_cast<Unsigned>(value) | (bit_cast<Unsigned>(sign) << 16));
}
CMF_HOST_DEVICE Narrow narrow(Vec<float> value, Half) {
  typedef Mask<float> Bits;
  const Bits sign = (bit_cast<Bits>(value) >> 16) & 0x8000;
  const Bits magnitude = bit_cast<Bits>(value) & 0x7fffffff;
  const Bits rounded = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the bottom
  const Bits subnormal = bit_cast<Bits>(bit_cast<Vec<float>>(magnitude) + 0.5f) - 0x3f000000;
  const Bits finite = magnitude < 0x38800000 ? subnormal : rounded;
  const Bits nan = (magnitude > 0x7f800000) & (0x200 | ((magnitude >> 13) & 0x3ff));
  return __builtin_convertvector(sign | (magnitude >= 0x477ff000 ? (nan | 0x7c00) : finite),
                                 Narrow);
}
#endif

template <class C>
CMF_HOST_DEVICE Vec<C> load(const BFloat16* source) {
  Narrow bits;
  __builtin_memcpy(&bits, source, sizeof bits);
  return widen(bits, BFloat16{});
}

template <class C>
CMF_HOST_DEVICE Vec<C> load(const Half* source) {
  Narrow bits;
  __builtin_memcpy(&bits, source, sizeof bits);
  return widen(bits, Half{});
}

template <class C>
CMF_HOST_DEVICE void store(BFloat16* target, Vec<C> value) {
  const Narrow bits = narrow(value, BFloat16{});
  __builtin_memcpy(target, &bits, sizeof bits);
}

template <class C>
CMF_HOST_DEVICE void store(Half* target, Vec<C> value) {
  const Narrow bits = narrow(value, Half{});
  __builtin_memcpy(target, &bits, sizeof bits);
}

constexpr int kLineBytes = 64;  // of the caches
constexpr int kLineFloats = kLineBytes / int(sizeof(float));

// A store that doesn't read the cache line first and leaves it out of the caches: for whole lines
// of what will not be read soon. Where a vector is less than a line, the stores of a line follow
// each other: with others between them each goes to memory on its own, which takes up to twice the
// time of a common store. `target` is aligned to the vector. fence_streams() before others read.
CMF_HOST_DEVICE void stream(float* target, Vec<float> value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(target, bit_cast<__m512>(value));
#elif defined(__AVX2__)
  _mm256_stream_ps(target, bit_cast<__m256>(value));
#elif defined(__SSE2__)
  _mm_stream_ps(target, bit_cast<__m128>(value));
#else
  store<float>(target, value);
#endif
}

CMF_HOST_DEVICE void fence_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Partial vectors: the first `count` < kLanes<C> values; memory behind them is neither read nor
// written.

// `count` < 2 * kWidth items of kSize bytes, as the sum of powers of two: never a call of memcpy.
template <int kWidth, int kSize>
struct CopyItems {
  static CMF_HOST_DEVICE void copy(unsigned char* target, const unsigned char* source, int count) {
    if (count & kWidth) {
      __builtin_memcpy(target, source, kWidth * kSize);
      target += kWidth * kSize;
      source += kWidth * kSize;
    }
    CopyItems<kWidth / 2, kSize>::copy(target, source, count);
  }
};
template <int kSize>
struct CopyItems<0, kSize> {
  static CMF_HOST_DEVICE void copy(unsigned char*, const unsigned char*, int) {}
};

template <class C, class T>
CMF_HOST_DEVICE void copy_lanes(T* target, const T* source, int count) {
  CopyItems<kLanes<C> / 2, sizeof(T)>::copy(reinterpret_cast<unsigned char*>(target),
                                            reinterpret_cast<const unsigned char*>(source), count);
}

template <class C, class T>
CMF_HOST_DEVICE Vec<C> load_partial(const T* source, int count, C fill = C(0)) {
  T padded[kLanes<C>];
  store<C>(padded, broadcast<C>(fill));
  copy_lanes<C>(padded, source, count);
  return load<C>(padded);
}

template <class C, class T>
CMF_HOST_DEVICE void store_partial(T* target, Vec<C> value, int count) {
  T padded[kLanes<C>];
  store<C>(padded, value);
  copy_lanes<C>(target, padded, count);
}

#if defined(__AVX512F__)
CMF_HOST_DEVICE uint32_t first_lanes(int count) { return (1u << count) - 1u; }

template <>
CMF_HOST_DEVICE Vec<float> load_partial<float, float>(const float* source, int count, float fill) {
  return bit_cast<Vec<float>>(
      _mm512_mask_loadu_ps(_mm512_set1_ps(fill), __mmask16(first_lanes(count)), source));
}
template <>
CMF_HOST_DEVICE Vec<double> load_partial<double, double>(const double* source, int count,
                                                         double fill) {
  return bit_cast<Vec<double>>(
      _mm512_mask_loadu_pd(_mm512_set1_pd(fill), __mmask8(first_lanes(count)), source));
}
template <>
CMF_HOST_DEVICE void store_partial<float, float>(float* target, Vec<float> value, int count) {
  _mm512_mask_storeu_ps(target, __mmask16(first_lanes(count)), bit_cast<__m512>(value));
}
template <>
CMF_HOST_DEVICE void store_partial<double, double>(double* target, Vec<double> value, int count) {
  _mm512_mask_storeu_pd(target, __mmask8(first_lanes(count)), bit_cast<__m512d>(value));
}
#elif defined(__AVX2__)
template <>
CMF_HOST_DEVICE Vec<float> load_partial<float, float>(const float* source, int count, float fill) {
  const Mask<float> inside = iota<float>(0, 1) < count;
  const Vec<float> value =
      bit_cast<Vec<float>>(_mm256_maskload_ps(source, bit_cast<__m256i>(inside)));
  return select(inside, value, broadcast<float>(fill));
}
template <>
CMF_HOST_DEVICE Vec<double> load_partial<double, double>(const double* source, int count,
                                                         double fill) {
  const Mask<double> inside = iota<double>(0, 1) < broadcast_integer<double>(count);
  const Vec<double> value =
      bit_cast<Vec<double>>(_mm256_maskload_pd(source, bit_cast<__m256i>(inside)));
  return select(inside, value, broadcast<double>(fill));
}
template <>
CMF_HOST_DEVICE void store_partial<float, float>(float* target, Vec<float> value, int count) {
  const Mask<float> inside = iota<float>(0, 1) < count;
  _mm256_maskstore_ps(target, bit_cast<__m256i>(inside), bit_cast<__m256>(value));
}
template <>
CMF_HOST_DEVICE void store_partial<double, double>(double* target, Vec<double> value, int count) {
  const Mask<double> inside = iota<double>(0, 1) < broadcast_integer<double>(count);
  _mm256_maskstore_pd(target, bit_cast<__m256i>(inside), bit_cast<__m256d>(value));
}
#endif

// Every other value: target[2 i] = value[i] for i < lanes. What lies between is not written.
CMF_HOST_DEVICE void store_alternate(float* target, Vec<float> value, int lanes) {
#if defined(__AVX512F__)
  const __m512 v = bit_cast<__m512>(value);
  const __m512i half = _mm512_set_epi32(0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0);
  const __m512i other = _mm512_add_epi32(half, _mm512_set1_epi32(8));
  const uint32_t mask = 0x55555555u & (lanes == 16 ? ~0u : (1u << (2 * lanes)) - 1u);
  _mm512_mask_storeu_ps(target, __mmask16(mask), _mm512_maskz_permutexvar_ps(mask, half, v));
  if (mask >> 16 != 0) {
    _mm512_mask_storeu_ps(target + 16, __mmask16(mask >> 16),
                          _mm512_maskz_permutexvar_ps(mask >> 16, other, v));
  }
#else
  for (int i = 0; i < lanes; ++i) target[2 * i] = value[i];
#endif
}

// Bytes: integers 0..255 of each lane, what lies beyond is not defined.

#if defined(__AVX512F__)
CMF_HOST_DEVICE VectorTypes<float>::Byte to_bytes(Mask<float> value) {
  return bit_cast<VectorTypes<float>::Byte>(
      _mm512_maskz_cvtepi32_epi8(__mmask16(-1), bit_cast<__m512i>(value)));
}
CMF_HOST_DEVICE VectorTypes<double>::Byte to_bytes(Mask<double> value) {
  const __m128i bytes = _mm512_maskz_cvtepi64_epi8(__mmask8(-1), bit_cast<__m512i>(value));
  return bit_cast<VectorTypes<double>::Byte>(_mm_cvtsi128_si64(bytes));
}
CMF_HOST_DEVICE Mask<float> from_bytes(VectorTypes<float>::Byte bytes, float) {
  return bit_cast<Mask<float>>(_mm512_maskz_cvtepu8_epi32(__mmask16(-1), bit_cast<__m128i>(bytes)));
}
CMF_HOST_DEVICE Mask<double> from_bytes(VectorTypes<double>::Byte bytes, double) {
  return bit_cast<Mask<double>>(
      _mm512_maskz_cvtepu8_epi64(__mmask8(-1), _mm_cvtsi64_si128(bit_cast<long long>(bytes))));
}
#elif defined(__AVX2__)
CMF_HOST_DEVICE VectorTypes<float>::Byte to_bytes(Mask<float> value) {
  const __m256i lanes = bit_cast<__m256i>(value);
  const __m128i shorts =
      _mm_packs_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  return bit_cast<VectorTypes<float>::Byte>(_mm_cvtsi128_si64(_mm_packus_epi16(shorts, shorts)));
}
CMF_HOST_DEVICE VectorTypes<double>::Byte to_bytes(Mask<double> value) {
  const __m256i lanes = bit_cast<__m256i>(value);
  const __m128i low = _mm256_castsi256_si128(lanes);
  const __m128i shorts = _mm_packs_epi32(low, _mm256_extracti128_si256(lanes, 1));
  // each lane's upper half is 0, so that its two bytes are value and 0: drop the zeros
  const __m128i bytes = _mm_packus_epi16(shorts, shorts);
  const __m128i narrow = _mm_packus_epi16(bytes, bytes);
  return bit_cast<VectorTypes<double>::Byte>(_mm_cvtsi128_si32(narrow));
}
CMF_HOST_DEVICE Mask<float> from_bytes(VectorTypes<float>::Byte bytes, float) {
  return bit_cast<Mask<float>>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bit_cast<long long>(bytes))));
}
CMF_HOST_DEVICE Mask<double> from_bytes(VectorTypes<double>::Byte bytes, double) {
  return bit_cast<Mask<double>>(_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bit_cast<int>(bytes))));
}
#elif defined(__SSE2__)
CMF_HOST_DEVICE VectorTypes<float>::Byte to_bytes(Mask<float> value) {
  const __m128i lanes = bit_cast<__m128i>(value);
  const __m128i shorts = _mm_packs_epi32(lanes, lanes);
  return bit_cast<VectorTypes<float>::Byte>(_mm_cvtsi128_si32(_mm_packus_epi16(shorts, shorts)));
}
CMF_HOST_DEVICE VectorTypes<double>::Byte to_bytes(Mask<double> value) {
  return VectorTypes<double>::Byte{uint8_t(value[0]), uint8_t(value[1])};
}
CMF_HOST_DEVICE Mask<float> from_bytes(VectorTypes<float>::Byte bytes, float) {
  const __m128i zero = _mm_setzero_si128();
  const __m128i shorts = _mm_unpacklo_epi8(_mm_cvtsi32_si128(bit_cast<int>(bytes)), zero);
  return bit_cast<Mask<float>>(_mm_unpacklo_epi16(shorts, zero));
}
CMF_HOST_DEVICE Mask<double> from_bytes(VectorTypes<double>::Byte bytes, double) {
  return Mask<double>{bytes[0], bytes[1]};
}
#else
// By halves: GCC vectorises each step.
CMF_HOST_DEVICE VectorTypes<float>::Byte to_bytes(Mask<float> value) {
  return __builtin_convertvector(__builtin_convertvector(value, Narrow), VectorTypes<float>::Byte);
}
CMF_HOST_DEVICE VectorTypes<double>::Byte to_bytes(Mask<double> value) {
  return VectorTypes<double>::Byte{uint8_t(value[0]), uint8_t(value[1])};
}
CMF_HOST_DEVICE Mask<float> from_bytes(VectorTypes<float>::Byte bytes, float) {
  return __builtin_convertvector(__builtin_convertvector(bytes, Narrow), Mask<float>);
}
CMF_HOST_DEVICE Mask<double> from_bytes(VectorTypes<double>::Byte bytes, double) {
  return Mask<double>{bytes[0], bytes[1]};
}
#endif

template <class C>
CMF_HOST_DEVICE void store_bytes(uint8_t* target, Mask<C> value) {
  const typename VectorTypes<C>::Byte bytes = to_bytes(value);
  __builtin_memcpy(target, &bytes, sizeof bytes);
}

template <class C>
CMF_HOST_DEVICE Mask<C> load_bytes(const uint8_t* source) {
  typename VectorTypes<C>::Byte bytes;
  __builtin_memcpy(&bytes, source, sizeof bytes);
  return from_bytes(bytes, C());
}

template <class C>
CMF_HOST_DEVICE void store_bytes_partial(uint8_t* target, Mask<C> value, int count) {
  uint8_t padded[kLanes<C>];
  store_bytes<C>(padded, value);
  copy_lanes<C>(target, padded, count);
}

template <class C>
CMF_HOST_DEVICE Mask<C> load_bytes_partial(const uint8_t* source, int count) {
  uint8_t padded[kLanes<C>] = {};
  copy_lanes<C>(padded, source, count);
  return load_bytes<C>(padded);
}

// Whole vectors inside a row, the first `lanes` of one at its end.

template <class C, class T>
CMF_HOST_DEVICE Vec<C> load_lanes(const T* source, int lanes) {
  return lanes == kLanes<C> ? load<C>(source) : load_partial<C>(source, lanes);
}

template <class C, class T>
CMF_HOST_DEVICE void store_lanes(T* target, Vec<C> value, int lanes) {
  if (lanes == kLanes<C>) {
    store<C>(target, value);
  } else {
    store_partial<C>(target, value, lanes);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

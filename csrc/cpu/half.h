// float16 and bfloat16 <-> float32, one value at a time, in integer arithmetic.
#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

CMF_HOST_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

CMF_HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

CMF_HOST_DEVICE float to_float(BFloat16 value) {
  return float_of(static_cast<uint32_t>(value.bits) << 16);
}

CMF_HOST_DEVICE float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in float32
    return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-24f));
  }
  if (exponent == 31) {  // infinity; NaN is made quiet, as the hardware conversion does
    return float_of(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
  }
  return float_of(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

// Round to nearest, ties to even.
CMF_HOST_DEVICE BFloat16 to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return BFloat16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return BFloat16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

CMF_HOST_DEVICE Half to_half(float value) {
  const uint32_t sign = (bits_of(value) >> 16) & 0x8000u;
  const uint32_t magnitude = bits_of(value) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return Half{static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
  }
  if (magnitude >= 0x477ff000u) return Half{static_cast<uint16_t>(sign | 0x7c00u)};  // >= 65520
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal: adding 0.5 leaves its bits, rounded, at the bottom.
    const uint32_t shifted = bits_of(float_of(magnitude) + 0.5f);
    return Half{static_cast<uint16_t>(sign | (shifted - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return Half{static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13))};
}

template <class C>
CMF_HOST_DEVICE C to_compute(float value) {
  return value;
}
template <class C>
CMF_HOST_DEVICE C to_compute(double value) {
  return value;
}
template <class C>
CMF_HOST_DEVICE C to_compute(Half value) {
  return to_float(value);
}
template <class C>
CMF_HOST_DEVICE C to_compute(BFloat16 value) {
  return to_float(value);
}

// The value as it is stored: `T stored = from_compute<T>(value)`.
template <class T>
struct Rounded;
template <>
struct Rounded<float> {
  static CMF_HOST_DEVICE float from(float value) { return value; }
};
template <>
struct Rounded<double> {
  static CMF_HOST_DEVICE double from(double value) { return value; }
};
template <>
struct Rounded<Half> {
  static CMF_HOST_DEVICE Half from(float value) { return to_half(value); }
};
template <>
struct Rounded<BFloat16> {
  static CMF_HOST_DEVICE BFloat16 from(float value) { return to_bfloat16(value); }
};
template <class T>
CMF_HOST_DEVICE T from_compute(ComputeType<T> value) {
  return Rounded<T>::from(value);
}

}  // namespace CMF_ISA
}  // namespace cmf

// half.h and the vector conversions, against a rounding that is written with ldexp and nearbyint.
#include <math.h>

#include "cpu/simd.h"
#include "tests/isa_tests.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kLane = kLanes<float>;

uint32_t pattern(float value) { return bits_of(value); }

struct HalfFormat {
  typedef Half Storage;
  static constexpr const char* kName = "float16";
  static constexpr int kMantissa = 10;
  static constexpr int kLeastExponent = -14;
  static constexpr double kLargest = 65504.0;
};

struct BFloat16Format {
  typedef BFloat16 Storage;
  static constexpr const char* kName = "bfloat16";
  static constexpr int kMantissa = 7;
  static constexpr int kLeastExponent = -126;
  static constexpr double kLargest = 0x1.fep127;
};

// What the bits mean, by IEEE 754's definition.
template <class F>
double meaning(uint16_t bits) {
  const int exponent_bits = 15 - F::kMantissa;
  const int biased = (bits >> F::kMantissa) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << F::kMantissa) - 1);
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (biased == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (biased == 0) return sign * ldexp(mantissa, F::kLeastExponent - F::kMantissa);
  return sign *
         ldexp((1 << F::kMantissa) + mantissa, F::kLeastExponent + biased - 1 - F::kMantissa);
}

// The nearest representable number, ties to even.
template <class F>
double rounded(double value) {
  if (isnan(value) || isinf(value) || value == 0) return value;
  int exponent = ilogb(value);
  if (exponent < F::kLeastExponent) exponent = F::kLeastExponent;
  const int shift = F::kMantissa - exponent;
  const double nearest = ldexp(nearbyint(ldexp(value, shift)), -shift);
  return ::fabs(nearest) > F::kLargest ? copysign(INFINITY, value) : nearest;
}

bool same(double a, double b) {
  return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b));
}

template <class F>
void check_every_pattern() {
  typedef typename F::Storage T;
  for (uint32_t first = 0; first < 65536; first += kLane) {
    T stored[kLane], again[kLane];
    float wide[kLane];
    for (int i = 0; i < kLane; ++i) stored[i].bits = static_cast<uint16_t>(first + i);
    const Vec<float> loaded = load<float>(stored);
    store<float>(wide, loaded);
    store<float>(again, loaded);
    for (int i = 0; i < kLane; ++i) {
      const uint16_t bits = stored[i].bits;
      CHECK_THAT(same(double(wide[i]), meaning<F>(bits)), "%s %04x loads as %a", F::kName, bits,
                 double(wide[i]));
      CHECK_THAT(pattern(wide[i]) == pattern(to_compute<float>(stored[i])) || isnan(wide[i]),
                 "%s %04x: vector and scalar differ", F::kName, bits);
      if (isnan(wide[i])) {
        CHECK_THAT(isnan(meaning<F>(again[i].bits)), "%s %04x: NaN is stored as %04x", F::kName,
                   bits, again[i].bits);
      } else {
        CHECK_THAT(again[i].bits == bits, "%s %04x comes back as %04x", F::kName, bits,
                   again[i].bits);
      }
    }
  }
}

template <class F>
void check_rounding_of(const float (&values)[kLane]) {
  typedef typename F::Storage T;
  T stored[kLane];
  store<float>(stored, load<float>(values));
  for (int i = 0; i < kLane; ++i) {
    const double expected = rounded<F>(double(values[i]));
    CHECK_THAT(same(meaning<F>(stored[i].bits), expected), "%s: %a is stored as %04x, not %a",
               F::kName, double(values[i]), stored[i].bits, expected);
    const T scalar = from_compute<T>(values[i]);
    CHECK_THAT(same(meaning<F>(scalar.bits), expected), "%s: %a is %04x, not %a", F::kName,
               double(values[i]), scalar.bits, expected);
  }
}

// A stride over all floats, then the ties between neighbours and what lies right beside each tie.
template <class F>
void check_rounding() {
  float values[kLane];
  int count = 0;
  const auto add = [&](float value) {
    values[count++] = value;
    if (count == kLane) {
      check_rounding_of<F>(values);
      count = 0;
    }
  };
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 16411) {
    add(float_of(static_cast<uint32_t>(bits)));
  }
  for (uint32_t bits = 0; bits < 65535; bits += 3) {
    const double low = meaning<F>(static_cast<uint16_t>(bits));
    const double high = meaning<F>(static_cast<uint16_t>(bits + 1));
    if (!isfinite(low) || !isfinite(high)) continue;
    const float tie = static_cast<float>((low + high) / 2);
    add(tie);
    add(nextafterf(tie, INFINITY));
    add(nextafterf(tie, -INFINITY));
  }
  // past the largest number; what is left in `values` goes with them
  float value = static_cast<float>(F::kLargest);
  for (int i = 0; i < kLane; ++i, value = nextafterf(value, INFINITY)) add(value);
}

}  // namespace

void test_half() {
  check_every_pattern<HalfFormat>();
  check_every_pattern<BFloat16Format>();
  check_rounding<HalfFormat>();
  check_rounding<BFloat16Format>();
}

}  // namespace CMF_ISA
}  // namespace cmf

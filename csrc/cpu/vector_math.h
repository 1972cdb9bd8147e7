// exp, expm1, log, log1p, tanh, erf, sigmoid and softplus of vectors.
//
// float: polynomials without tables or gathers, within 2 ulp of the exact value for every float32
// (`make ulp` measures all 2^32), with or without fused multiply-add. Special values as C99's annex
// F has them: NaN in NaN out, subnormals are kept, signs of zero too. No function reads or changes
// the CPU's rounding or flush-to-zero modes; all assume round to nearest.
//
// double: the C library, lane by lane. Correct first: float64 is for checks, not for speed.
//
// The polynomials' coefficients come from our own weighted minimax fits, rounded to float32 one by
// one from the lowest, each followed by a new fit of the rest.
#pragma once

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

typedef typename VectorTypes<float>::Unsigned UnsignedLanes;

CMF_HOST_DEVICE Vec<float> fabs(Vec<float> x) {
  return bit_cast<Vec<float>>(bit_cast<UnsignedLanes>(x) & 0x7fffffffu);
}

CMF_HOST_DEVICE Vec<float> copysign(Vec<float> magnitude, Vec<float> sign) {
  return bit_cast<Vec<float>>((bit_cast<UnsignedLanes>(magnitude) & 0x7fffffffu) |
                              (bit_cast<UnsignedLanes>(sign) & 0x80000000u));
}

// n / d for d >= 1, within 1 ulp of normal numbers; what is not finite as division has it.
CMF_HOST_DEVICE Vec<float> quotient(Vec<float> n, Vec<float> d) {
#if defined(__AVX512F__)
  // An estimate of 14 bits and a step of Newton's: a third of the division's time.
  const __m512 divisor = bit_cast<__m512>(d);
  const __m512 inverse = _mm512_maskz_rcp14_ps(__mmask16(-1), divisor);
  const __m512 estimate = bit_cast<__m512>(n * bit_cast<Vec<float>>(inverse));
  const __m512 rest = _mm512_fnmadd_ps(divisor, estimate, bit_cast<__m512>(n));
  // infinity times 0 or less infinity: then the estimate says all
  const __mmask16 finite = _mm512_cmp_ps_mask(rest, rest, _CMP_ORD_Q);
  return bit_cast<Vec<float>>(_mm512_mask3_fmadd_ps(rest, inverse, estimate, finite));
#else
  return n / d;
#endif
}
CMF_HOST_DEVICE Vec<double> quotient(Vec<double> n, Vec<double> d) { return n / d; }

// x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 leaves n in the sum's low bits.
struct ExpReduction {
  Vec<float> n;
  Vec<float> r;
  Vec<float> r_head;  // r = r_head - r_tail, before that is rounded
  Vec<float> r_tail;
  UnsignedLanes shifted;  // the bits of n + 1.5 * 2^23

  CMF_HOST_DEVICE explicit ExpReduction(Vec<float> x) {
    const Vec<float> sum = x * 0x1.715476p+0f + 0x1.8p23f;
    shifted = bit_cast<UnsignedLanes>(sum);
    n = sum - 0x1.8p23f;
    r_head = x - n * 0x1.62e4p-1f;  // 16 bits of ln 2: exact for |n| < 256, with or without FMA
    r_tail = n * 0x1.7f7d1cp-20f;
    r = r_head - r_tail;
  }

  // e^r: relative to e^r the error is far smaller than relative to e^r - 1, one degree less will do
  CMF_HOST_DEVICE Vec<float> exp() const {
    Vec<float> q = r * 0x1.6a4d60p-10f + 0x1.12398ep-7f;
    q = q * r + 0x1.5558b0p-5f;
    q = q * r + 0x1.555492p-3f;
    q = q * r + 0x1.fffffcp-2f;
    return ((q * (r * r) - r_tail) + r_head) + 1.0f;
  }

  // e^r - 1
  CMF_HOST_DEVICE Vec<float> expm1() const {
    Vec<float> q = r * 0x1.9e7380p-13f + 0x1.6d3a4ap-10f;
    q = q * r + 0x1.1112d8p-7f;
    q = q * r + 0x1.5554f8p-5f;
    q = q * r + 0x1.555554p-3f;
    q = q * r + 0.5f;
    return (q * (r * r) - r_tail) + r_head;
  }

  // 2^n for -126 <= n <= 127
  CMF_HOST_DEVICE Vec<float> scale() const {
    return bit_cast<Vec<float>>((shifted << 23) + 0x3f800000u);
  }
};

#if defined(__AVX512F__)
// e^x for -104 <= x; infinity from 89 on. NaN stays NaN. Within 0.7 ulp.
CMF_HOST_DEVICE Vec<float> exp_by_table(Vec<float> x) {
  // x = (16 n + j) (ln 2) / 16 + r: a register holds the 16 values of 2^(j/16), so r is small
  // enough for a cubic. Adding 1.5 * 2^23 leaves 16 n + j in the low bits, of which a permutation
  // reads j alone; a 16th of it is rounded down to n by the instruction that scales by 2^n.
  const UnsignedLanes table = {0x3f800000, 0x3f85aac3, 0x3f8b95c2, 0x3f91c3d3,
                               0x3f9837f0, 0x3f9ef532, 0x3fa5fed7, 0x3fad583f,
                               0x3fb504f3, 0x3fbd08a4, 0x3fc5672a, 0x3fce248c,
                               0x3fd744fd, 0x3fe0ccdf, 0x3feac0c7, 0x3ff5257d};
  // what rounding has taken off them, relative to them
  const UnsignedLanes tails = {0x00000000, 0x3346cb6a, 0xb24e0611, 0x334b2482,
                               0x33092801, 0x331b85f2, 0xb3051aa8, 0xb2006c56,
                               0x329302ae, 0xb302e5a2, 0x31b3d0e5, 0x31d1daf2,
                               0xb27ce182, 0xb1b4b0da, 0xb1d290be, 0x31b0a147};
  const Vec<float> shifted = x * 0x1.715476p+4f + 0x1.8p23f;
  const Vec<float> n = shifted - 0x1.8p23f;
  // 16 n times the upper part of (ln 2) / 16 needs 26 bits: fused by name, at any optimisation
  const __m512 steps = bit_cast<__m512>(n);
  const __m512 upper = _mm512_fnmadd_ps(steps, _mm512_set1_ps(0x1.62e4p-5f), bit_cast<__m512>(x));
  const Vec<float> r =
      bit_cast<Vec<float>>(_mm512_fnmadd_ps(steps, _mm512_set1_ps(0x1.7f7d1cp-24f), upper));
  const auto look_up = [&](UnsignedLanes values) {
    return bit_cast<Vec<float>>(_mm512_maskz_permutexvar_epi32(
        __mmask16(-1), bit_cast<__m512i>(shifted), bit_cast<__m512i>(values)));
  };
  const Vec<float> root = look_up(table);
  const Vec<float> q = ((r * 0x1.555556p-3f + 0x1.00021fp-1f) * r + 1.0f) * r + look_up(tails);
  return bit_cast<Vec<float>>(_mm512_maskz_scalef_ps(
      __mmask16(-1), bit_cast<__m512>(q * root + root), bit_cast<__m512>(n * 0x1p-4f)));
}

CMF_HOST_DEVICE Vec<float> at_least(float low, Vec<float> x) {  // a NaN stays
  return bit_cast<Vec<float>>(_mm512_max_ps(_mm512_set1_ps(low), bit_cast<__m512>(x)));
}
CMF_HOST_DEVICE Vec<float> at_most(float high, Vec<float> x) {
  return bit_cast<Vec<float>>(_mm512_min_ps(_mm512_set1_ps(high), bit_cast<__m512>(x)));
}

// Beyond these the result is 0 or infinity all the same.
CMF_HOST_DEVICE Vec<float> exp(Vec<float> x) {
  return exp_by_table(at_most(89.0f, at_least(-104.0f, x)));
}
// For x <= 0.
CMF_HOST_DEVICE Vec<float> exp_of_negative(Vec<float> x) {
  return exp_by_table(at_least(-104.0f, x));
}
CMF_HOST_DEVICE Vec<float> gradual_exp_of_negative(Vec<float> x) { return exp_of_negative(x); }
#else
CMF_HOST_DEVICE Vec<float> exp(Vec<float> x) {
  // Beyond these the result is 0 or infinity all the same; NaN fails both comparisons and stays.
  x = select(x > 89.0f, broadcast(89.0f), x);
  x = select(x < -104.0f, broadcast(-104.0f), x);
  const ExpReduction reduced(x);
  const Vec<float> value = reduced.exp();
  // 2^n in two steps: n reaches from -150 to 128, and only the last step may round.
  const Mask<float> n = bit_cast<Mask<float>>(reduced.shifted) - 0x4b400000;
  const Mask<float> half = n >> 1;
  const UnsignedLanes first = bit_cast<UnsignedLanes>(half + 127) << 23;
  const UnsignedLanes second = bit_cast<UnsignedLanes>(n - half + 127) << 23;
  return value * bit_cast<Vec<float>>(first) * bit_cast<Vec<float>>(second);
}

// e^x for x <= 0, in three quarters of exp's time: no overflow, and results under 2^-126 are 0. NaN
// stays NaN. Within 1.1 ulp.
CMF_HOST_DEVICE Vec<float> exp_of_negative(Vec<float> x) {
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding kRound leaves 127 + n in the low bits
  const float kRound = 0x1.8p+23f + 127.0f;
  const Vec<float> shifted = x * 0x1.715476p+0f + kRound;
  const Vec<float> n = shifted - kRound;
  const Vec<float> r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  Vec<float> p = r * 0x1.6a2318p-10f + 0x1.123a8ep-7f;
  p = p * r + 0x1.5558f6p-5f;
  p = p * r + 0x1.555490p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Vec<float> power = bit_cast<Vec<float>>(bit_cast<UnsignedLanes>(shifted) << 23);
  return select(x < -0x1.5d589ep+6f, Vec<float>{}, p * power);
}
// Where results under 2^-126 count.
CMF_HOST_DEVICE Vec<float> gradual_exp_of_negative(Vec<float> x) { return exp(x); }
#endif

CMF_HOST_DEVICE Vec<float> expm1(Vec<float> x) {
  Vec<float> clamped = select(x > 89.0f, broadcast(89.0f), x);
  clamped = select(clamped < -18.0f, broadcast(-18.0f), clamped);
  const ExpReduction reduced(clamped);
  // 2^n e^r - 1 = 2^n (e^r - 1) + (2^n - 1), by halves because 2^128 is no float
  const Vec<float> half = bit_cast<Vec<float>>((reduced.shifted << 23) + 0x3f000000u);
  const Vec<float> value = (half * reduced.expm1() + (half - 0.5f)) * 2.0f;
  return select(fabs(x) < 0x1p-25f, x, value);  // -0 and subnormals, exactly
}

// log(1 + f) for -1/3 <= f <= 1/3
CMF_HOST_DEVICE Vec<float> log1p_reduced(Vec<float> f) {
  Vec<float> p = f * -0x1.07bc3cp-3f + 0x1.1e6eb6p-3f;
  p = p * f - 0x1.f335d0p-4f;
  p = p * f + 0x1.1ed508p-3f;
  p = p * f - 0x1.559c54p-3f;
  p = p * f + 0x1.99d054p-3f;
  p = p * f - 0x1.fffefap-3f;
  p = p * f + 0x1.555506p-2f;
  const Vec<float> square = f * f;
  return f + square * (p * f - 0.5f);
}

// k ln 2 + log1p_f, the small part first
CMF_HOST_DEVICE Vec<float> add_exponent(Vec<float> k, Vec<float> log1p_f) {
  return k * 0x1.62e4p-1f + (k * 0x1.7f7d1cp-20f + log1p_f);
}

// What is to be taken off the bits of x > 0 to bring it into [2/3, 4/3): the exponent k, in place.
// Unsigned, because the lanes of arguments outside the domain wrap around.
CMF_HOST_DEVICE UnsignedLanes exponent_bits(Vec<float> x) {
  return (bit_cast<UnsignedLanes>(x) - 0x3f2aaaabu) & ~0x7fffffu;
}

CMF_HOST_DEVICE Mask<float> exponent_of(UnsignedLanes bits) {
  return bit_cast<Mask<float>>(bits) >> 23;
}

CMF_HOST_DEVICE Vec<float> log(Vec<float> x) {
  const Mask<float> subnormal = x < 0x1p-126f;
  const Vec<float> normal = select(subnormal, x * 0x1p23f, x);
  const UnsignedLanes exponent = exponent_bits(normal);
  const Vec<float> f = bit_cast<Vec<float>>(bit_cast<UnsignedLanes>(normal) - exponent) - 1.0f;
  const Mask<float> k = exponent_of(exponent) + (subnormal & -23);
  const Vec<float> value = add_exponent(__builtin_convertvector(k, Vec<float>), log1p_reduced(f));
  const Vec<float> infinity = broadcast(__builtin_inff());
  const Vec<float> special =
      select(x == 0.0f, -infinity, x < 0.0f ? x - x + __builtin_nanf("") : x);
  return select((x > 0.0f) & (x < infinity), value, special);
}

CMF_HOST_DEVICE Vec<float> log1p(Vec<float> x) {
  // 1 + x = 2^k (1 + f). 1 + x is rounded to find k alone; f = 2^-k x + (2^-k - 1) rounds once.
  const Vec<float> u = 1.0f + x;
  const UnsignedLanes exponent = exponent_bits(u);
  const Vec<float> scale = bit_cast<Vec<float>>(0x3f800000u - exponent);
  Vec<float> f = x * scale + (scale - 1.0f);
  // from 2^26 on adding 1 changes nothing, and 2^-k leaves the normal numbers
  f = select(x < 0x1p26f, f, bit_cast<Vec<float>>(bit_cast<UnsignedLanes>(u) - exponent) - 1.0f);
  const Vec<float> value =
      add_exponent(__builtin_convertvector(exponent_of(exponent), Vec<float>), log1p_reduced(f));
  const Vec<float> infinity = broadcast(__builtin_inff());
  const Vec<float> special =
      select(x == -1.0f, -infinity, x < -1.0f ? x - x + __builtin_nanf("") : x);
  return select((x > -1.0f) & (x < infinity) & (x != 0.0f), value, special);
}

// log1p for 0 <= x <= 1: k is 0 or 1, no special values but NaN. (One polynomial for the whole
// range is as long, and without fused multiply-add its alternating terms lose the last bit.)
CMF_HOST_DEVICE Vec<float> log1p_unit(Vec<float> x) {
  const Mask<float> large = x > 0x1.555556p-2f;
  const Vec<float> log1p_f = log1p_reduced(select(large, x * 0.5f - 0.5f, x));
  return select(large, log1p_f + 0x1.62e43p-1f, log1p_f);
}

CMF_HOST_DEVICE Vec<float> tanh(Vec<float> x) {
  // |x| < 5/8: x + x^3 p(x^2)
  const Vec<float> s = x * x;
  Vec<float> p = s * -0x1.750ce2p-8f + 0x1.51f8cep-6f;
  p = p * s - 0x1.b835a4p-5f;
  p = p * s + 0x1.1106f6p-3f;
  p = p * s - 0x1.555532p-2f;
  const Vec<float> small = (p * s) * x + x;
  // else: 1 - 2 e / (1 + e) with e = e^(-2|x|); from 9.02 on that rounds to 1
  const Vec<float> a = fabs(x);
  const Vec<float> e = exp_of_negative(-2.0f * a);
  const Vec<float> value = select(a < 0.625f, small, 1.0f - quotient(2.0f * e, 1.0f + e));
  return copysign(value, x);  // of both: small of -0 came out as 0
}

CMF_HOST_DEVICE Vec<float> erf(Vec<float> x) {
  // |x| < 7/8: x + x p(x^2)
  const Vec<float> s = x * x;
  Vec<float> p = s * 0x1.49feeep-14f - 0x1.a4d0d6p-11f;
  p = p * s + 0x1.54318cp-8f;
  p = p * s - 0x1.b7ff90p-6f;
  p = p * s + 0x1.ce2d5cp-4f;
  p = p * s - 0x1.812740p-2f;
  p = p * s + 0x1.06eba8p-3f;
  const Vec<float> small = p * x + x;
  // else: 1 - erfc |x| with the logarithm of erfc as a polynomial; from 3.93 on that rounds to 1
  const Vec<float> a = fabs(x);
  const Vec<float> b = select(a > 4.0f, broadcast(4.0f), a);
  Vec<float> q = b * 0x1.a339b6p-13f - 0x1.93f6ecp-9f;
  q = q * b + 0x1.6eb0fap-6f;
  q = q * b - 0x1.ab0250p-4f;
  q = q * b - 0x1.460d5ap-1f;
  q = q * b - 0x1.20bd5cp+0f;
  q = q * b - 0x1.2e6f3cp-13f;
  const ExpReduction reduced(q);
  const Vec<float> erfc = reduced.exp() * reduced.scale();
  return select(a < 0.875f, small, copysign(1.0f - erfc, x));
}

// The C library, lane by lane.
#define CMF_LANE_BY_LANE(function)                                                             \
  CMF_HOST_DEVICE Vec<double> function(Vec<double> x) {                                        \
    for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = __builtin_##function(x[lane]); \
    return x;                                                                                  \
  }
CMF_LANE_BY_LANE(exp)
CMF_LANE_BY_LANE(expm1)
CMF_LANE_BY_LANE(log)
CMF_LANE_BY_LANE(log1p)
CMF_LANE_BY_LANE(tanh)
CMF_LANE_BY_LANE(erf)
#undef CMF_LANE_BY_LANE

CMF_HOST_DEVICE Vec<double> log1p_unit(Vec<double> x) { return log1p(x); }
CMF_HOST_DEVICE Vec<double> exp_of_negative(Vec<double> x) { return exp(x); }
CMF_HOST_DEVICE Vec<double> gradual_exp_of_negative(Vec<double> x) { return exp(x); }

// 1 / (1 + e^-x), written with e = e^-|x| so that neither side overflows and small values keep
// their bits.
template <class V>
CMF_HOST_DEVICE V sigmoid(V x) {
  const V one = V{} + 1;
  const V e = gradual_exp_of_negative(select(x < V{}, x, -x));
  const V ratio = quotient(select(x < V{}, e, one), one + e);
  // e / (1 + e) = e - e e / (1 + e). Below 1/4 the rounding of 1 + e would cost up to a whole unit
  // in the last place; in the second form it hardly counts.
  return select((x < V{}) & (e < V{} + 0.3333f), e - e * ratio, ratio);
}

// log(1 + e^x)
template <class V>
CMF_HOST_DEVICE V softplus(V x) {
  return select(x < V{}, V{}, x) + log1p_unit(gradual_exp_of_negative(select(x < V{}, x, -x)));
}

}  // namespace CMF_ISA
}  // namespace cmf

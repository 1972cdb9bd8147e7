// The instructions of cuda/mma.h on the host: the lanes of a warp meet, and the last one computes
// for all, from the registers in which a device would have the operands.
#pragma once

#include <math.h>
#include <string.h>

#include "cuda/shim/block.h"

namespace cmf {
namespace CMF_ISA {
namespace mma_shim {

constexpr unsigned kAllLanes = 0xffffffffu;

inline float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline float bfloat16_value(uint32_t bits) { return as_float(bits << 16); }

inline float half_value(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return as_float(sign | 0x7f800000u | fraction << 13);
  const float magnitude =
      exponent ? ldexpf(static_cast<float>(1024 + fraction), static_cast<int>(exponent) - 25)
               : ldexpf(static_cast<float>(fraction), -24);
  return sign ? -magnitude : magnitude;
}

// What one lane brings, beside c.
struct Operands {
  const uint32_t* a;
  uint32_t b[2];
};

// 16-bit elements: two in a register.
template <float (*value)(uint32_t)>
struct Pairs {
  static constexpr int kDepth = 16;
  static float element(uint32_t bits, int i) { return value(i ? bits >> 16 : bits & 0xffffu); }
};
// tf32: the hardware does not look at the last 13 bits.
struct Singles {
  static constexpr int kDepth = 8;
  static float element(uint32_t bits, int) { return as_float(bits & 0xffffe000u); }
};

template <class Elements>
void multiply(unsigned, const void* const* inputs, void* const* outputs) {
  constexpr int depth = Elements::kDepth, half = depth / 2, in_register = depth / 8;
  float a[16][depth], b[depth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Operands& from = *static_cast<const Operands*>(inputs[lane]);
    for (int part = 0; part < 2; ++part) {
      for (int i = 0; i < in_register; ++i) {
        const int k = part * half + lane % 4 * in_register + i;
        a[lane / 4][k] = Elements::element(from.a[2 * part], i);
        a[lane / 4 + 8][k] = Elements::element(from.a[2 * part + 1], i);
        b[k][lane / 4] = Elements::element(from.b[part], i);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* c = static_cast<float*>(outputs[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      c[i] += sum;
    }
  }
}

// How many rows of 16 bytes that one instruction reads together lie in the banks of another one.
inline unsigned& bank_conflicts() {
  static unsigned count = 0;
  return count;
}

template <bool transposed>
void load(unsigned, const void* const* inputs, void* const* outputs) {
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t* target = static_cast<uint32_t*>(outputs[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      const void* const* rows = inputs + 8 * matrix;
      if (lane == 0) {
        unsigned banks = 0;
        for (int row = 0; row < 8; ++row) {
          const unsigned bank = 1u << (reinterpret_cast<uintptr_t>(rows[row]) / 16 % 8);
          bank_conflicts() += (banks & bank) != 0;
          banks |= bank;
        }
      }
      if (!transposed) {
        memcpy(target + matrix, static_cast<const char*>(rows[lane / 4]) + lane % 4 * 4, 4);
        continue;
      }
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        memcpy(pair + i, static_cast<const char*>(rows[lane % 4 * 2 + i]) + lane / 4 * 2, 2);
      }
      memcpy(target + matrix, pair, 4);
    }
  }
}

inline void check_row(const void* row, shim::Site site) {
  if (reinterpret_cast<uintptr_t>(row) % 16) shim::fail("ldmatrix of a misaligned row", site);
  if (!shim::is_shared(row, 16)) shim::fail("ldmatrix outside shared memory", site);
}

}  // namespace mma_shim

inline void load_matrices(uint32_t (&r)[4], const void* row, const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
  const shim::Site site = {file, line};
  mma_shim::check_row(row, site);
  shim::warp_collective(mma_shim::kAllLanes, "ldmatrix", row, r, mma_shim::load<false>, site);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row,
                                     const char* file = __builtin_FILE(),
                                     int line = __builtin_LINE()) {
  const shim::Site site = {file, line};
  mma_shim::check_row(row, site);
  shim::warp_collective(mma_shim::kAllLanes, "ldmatrix.trans", row, r, mma_shim::load<true>, site);
}

template <class Elements>
void mma(const char* name, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         shim::Site site) {
  const mma_shim::Operands operands = {a, {b0, b1}};
  shim::warp_collective(mma_shim::kAllLanes, name, &operands, c, mma_shim::multiply<Elements>,
                        site);
}
inline void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  mma<mma_shim::Pairs<mma_shim::bfloat16_value> >("mma.bf16", c, a, b0, b1, {file, line});
}
inline void mma_half(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  mma<mma_shim::Pairs<mma_shim::half_value> >("mma.f16", c, a, b0, b1, {file, line});
}
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  mma<mma_shim::Singles>("mma.tf32", c, a, b0, b1, {file, line});
}

// To nearest, ties away from zero; NaN and infinity as they are.
inline uint32_t round_to_tf32(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace CMF_ISA
}  // namespace cmf

// Bytes of a (0-3) and b (4-7), chosen by the low bits of each nibble.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xffu) << 8 * i;
  }
  return result;
}
// 0xff in each byte where a and b are equal.
inline uint32_t __vcmpeq4(uint32_t a, uint32_t b) {
  uint32_t result = 0;
  for (int i = 0; i < 32; i += 8) result |= (a >> i & 0xffu) == (b >> i & 0xffu) ? 0xffu << i : 0u;
  return result;
}

// Matrix products of a warp's tensor cores, and what brings their operands there.
//
// A device has them as instructions; without one shim/mma.h does the same with the same registers.
//
// Register layout (PTX ISA, "Matrix Fragments for mma.m16n8k16" and "m16n8k8"), lane l:
//   c[0], c[1]  row l / 4,     columns 2 (l % 4) and the next        c[2], c[3]  row l / 4 + 8
//   a[0] row l / 4, a[1] row l / 4 + 8: bytes 4 (l % 4) .. + 3 of the row; a[2], a[3] 16 bytes on
//   b[0] column l / 4: bytes 4 (l % 4) .. + 3 of the column;             b[1] 16 bytes on
// so that 16-bit and 32-bit operands differ in the instruction alone: a step takes 32 bytes.
#pragma once

#include "common/dtype.h"
#include "cuda/runtime.h"

#if defined(CMF_CUDA_SHIM)
#include "cuda/shim/mma.h"
#else

namespace cmf {
namespace CMF_ISA {

// Four matrices of 8 rows of 16 bytes; lane 8 i + r names row r of matrix i. Lane l gets of each
// the bytes 4 (l % 4) .. + 3 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// The same of 16-bit elements, transposed: lane l gets elements l / 4 of rows 2 (l % 4) and the
// next.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

#define CMF_MMA(name, types)                                                               \
  __device__ __forceinline__ void name(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, \
                                       uint32_t b1) {                                      \
    asm volatile("mma.sync.aligned." types                                                 \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"        \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));          \
  }
CMF_MMA(mma_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
CMF_MMA(mma_half, "m16n8k16.row.col.f32.f16.f16.f32")
CMF_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef CMF_MMA

// float32 to tf32, to nearest; the instruction alone would cut the last 13 bits off.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

}  // namespace CMF_ISA
}  // namespace cmf

#endif

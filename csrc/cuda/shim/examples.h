// Small kernels, right and wrong, by which the tests of the emulator see that it tells them apart.
#pragma once

#include <stdint.h>

namespace cmf {
namespace shim {

// Runs the example of that name on `values` [count] in place. Throws std::invalid_argument where
// there is none.
void run_example(const char* name, float* values, int count);

// One instruction of cuda/mma.h on the registers of one warp: a [32, 4], b [32, 2], c [32, 4] (in
// place) of "bfloat16", "float16" or "tf32"; and rows [32] of 16 bytes to registers [32, 4].
void run_mma(const char* name, const uint32_t* a, const uint32_t* b, float* c);
// `apart` 1 reads all of them, 0 the first one 32 times.
void run_load_matrices(bool transposed, const uint32_t* rows, uint32_t* registers, unsigned apart);

// How many rows that ldmatrix has read had to wait for another one's banks, since the last call.
unsigned take_bank_conflicts();

}  // namespace shim
}  // namespace cmf

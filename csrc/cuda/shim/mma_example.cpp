#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/mma.h"
#include "cuda/shim/examples.h"

namespace cmf {
namespace shim {
namespace {

using namespace cuda_shim;

// A warp's registers: [32 lanes, 4], [32, 2] and [32, 4].
template <void (*instruction)(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t, const char*,
                              int)>
__global__ void multiply_registers(const uint32_t* a, const uint32_t* b, float* c) {
  const unsigned lane = threadIdx.x;
  uint32_t left[4];
  float sums[4];
  for (int i = 0; i < 4; ++i) left[i] = a[4 * lane + i];
  for (int i = 0; i < 4; ++i) sums[i] = c[4 * lane + i];
  instruction(sums, left, b[2 * lane], b[2 * lane + 1], __FILE__, __LINE__);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = sums[i];
}

// rows: 32 of 16 bytes, of which lane i reads number i · apart; registers: [32 lanes, 4].
template <bool kTransposed>
__global__ void load_registers(const uint32_t* rows, uint32_t* registers, unsigned apart) {
  CMF_SHARED(uint32_t[32][4], tile);
  const unsigned lane = threadIdx.x;
  for (int i = 0; i < 4; ++i) tile[lane][i] = rows[4 * lane + i];
  __syncwarp();
  uint32_t loaded[4];
  if (kTransposed) {
    load_matrices_transposed(loaded, tile[lane * apart]);
  } else {
    load_matrices(loaded, tile[lane * apart]);
  }
  for (int i = 0; i < 4; ++i) registers[4 * lane + i] = loaded[i];
}

}  // namespace

void run_mma(const char* name, const uint32_t* a, const uint32_t* b, float* c) {
  const Grid warp = {dim3(1), dim3(32), 0, nullptr};
  const std::string kind = name;
  if (kind == "bfloat16") return launch(name, multiply_registers<mma_bfloat16>, warp, a, b, c);
  if (kind == "float16") return launch(name, multiply_registers<mma_half>, warp, a, b, c);
  if (kind == "tf32") return launch(name, multiply_registers<mma_tf32>, warp, a, b, c);
  throw std::invalid_argument("no product of " + kind);
}

void run_load_matrices(bool transposed, const uint32_t* rows, uint32_t* registers, unsigned apart) {
  const Grid warp = {dim3(1), dim3(32), 0, nullptr};
  launch("ldmatrix", transposed ? load_registers<true> : load_registers<false>, warp, rows,
         registers, apart);
}

unsigned take_bank_conflicts() {
  unsigned& count = cuda_shim::mma_shim::bank_conflicts();
  const unsigned before = count;
  count = 0;
  return before;
}

}  // namespace shim
}  // namespace cmf

// A grid of thread blocks run one after the other on one thread of the host: each thread of a block
// is a fiber, and runs until it waits. What the hardware would let happen in any order happens here
// in the order asked for, so that a missing barrier shows as a wrong result in one of them.
//
// Errors (a barrier that not every thread reaches, lanes that wait for each other in different
// calls, a misaligned vector access) end the grid with an exception of std::runtime_error.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <functional>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace cmf {
namespace shim {

constexpr int kWarpSize = 32;
constexpr size_t kStaticSharedBytes = 48 << 10;    // what a kernel may declare
constexpr size_t kDynamicSharedBytes = 227 << 10;  // what a launch may ask for (sm_90)

enum class Order { kForward, kReverse, kRandom };

struct Settings {
  Order order = Order::kForward;  // of threads in a block, and of blocks in a grid
  uint64_t seed = 0;
};
Settings& settings();

// Where in the kernel's source a thread waits.
struct Site {
  const char* file;
  int line;
};

// Runs `thread` once for each thread of the grid; `name` is the kernel's, for messages.
void run_grid(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
              const std::function<void()>& thread);

// -- called by threads --

[[noreturn]] void fail(const char* what, Site site);

// Threads of a block meet: all of them, or `count` of them at barrier `id`.
void block_barrier(Site site, int id = 0, unsigned count = 0);
// The same, and gives the sum of every thread's value.
unsigned block_sum(unsigned value, Site site);

// The lanes of `mask` meet in one call: when the last arrives, `combine` gets every lane's input
// and output (null where the lane is not in the mask). All must come with the same `name`.
typedef void (*Combine)(unsigned mask, const void* const* inputs, void* const* outputs);
void warp_collective(unsigned mask, const char* name, const void* input, void* output,
                     Combine combine, Site site);
unsigned lane_index();

// Shared memory of the running block, filled with NaN before the block begins. `key` names a
// declaration: every thread of the block that comes by it gets the same memory.
void* static_shared(const void* key, size_t bytes, size_t alignment, Site site);
void* dynamic_shared();
// Whether [at, at + bytes) is the block's shared memory.
bool is_shared(const void* at, size_t bytes);

// cp.async: the bytes arrive when the thread waits for their group, not before; until then the
// target holds NaN.
void async_copy(void* shared, const void* global, size_t bytes, size_t source_bytes, Site site);
void async_commit();
void async_wait(unsigned groups_in_flight);

}  // namespace shim
}  // namespace cmf

// CUDA's own names of a thread's place; set whenever a thread runs.
extern dim3 threadIdx;
extern dim3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

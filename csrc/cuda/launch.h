// Kernel launches: the same host code for a device and for the emulator.
#pragma once

#include <stdint.h>

#include <stdexcept>
#include <string>

#include "cuda/runtime.h"

namespace cmf {
namespace CMF_ISA {

// A grid of blocks, on the caller's stream of the current device.
struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t dynamic_shared_bytes;
  cudaStream_t stream;
};

// What went wrong, where. The binding adds the problem.
class LaunchError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] void throw_launch_error(const char* kernel, const Grid& grid, const char* reason);

constexpr size_t kSharedWithoutAsking = 48 << 10;

// kernel<<<grid>>>(arguments). Throws LaunchError; what goes wrong while the kernel runs, PyTorch
// reports at the next synchronisation.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid,
            Arguments... arguments) {
#if defined(CMF_CUDA_SHIM)
  shim::run_grid(name, grid.blocks, grid.threads, grid.dynamic_shared_bytes,
                 [&] { kernel(arguments...); });
#else
  if (grid.dynamic_shared_bytes > kSharedWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(grid.dynamic_shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // it would be reported again
      throw_launch_error(name, grid, cudaGetErrorString(error));
    }
  }
  // not in the form with three brackets, which clang-format does not know in a header
  const auto run = [&](Parameters... parameters) {
    void* addresses[] = {&parameters...};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid.blocks, grid.threads,
                            addresses, grid.dynamic_shared_bytes, grid.stream);
  };
  const cudaError_t error = run(arguments...);
  if (error != cudaSuccess) {
    cudaGetLastError();
    throw_launch_error(name, grid, cudaGetErrorString(error));
  }
#endif
}

}  // namespace CMF_ISA
}  // namespace cmf

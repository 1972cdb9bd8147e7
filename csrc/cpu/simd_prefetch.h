// Prefetching for streams that the hardware follows too late: short rows, several side by side.
#pragma once

#include "cpu/simd_memory.h"

namespace cmf {
namespace CMF_ISA {

// The lines that lie a fixed distance behind source .. source + bytes - 1.
CMF_HOST_DEVICE void prefetch_behind(const void* source, int64_t bytes) {
  constexpr uintptr_t kDistance = 2048;
  const uintptr_t address = reinterpret_cast<uintptr_t>(source) + kDistance;
  for (int64_t line = 0; line < bytes; line += kLineBytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + static_cast<uintptr_t>(line)));
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

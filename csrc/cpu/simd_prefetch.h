// Prefetching for streams that the hardware follows too late: short rows, several side by side.
#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kLineFloats = 64 / int(sizeof(float));  // of a cache's line

// The lines that lie a fixed distance behind source .. source + bytes - 1.
CMF_HOST_DEVICE void prefetch_behind(const void* source, int64_t bytes) {
  constexpr uintptr_t kDistance = 2048;
  constexpr int64_t kLine = 64;
  const uintptr_t address = reinterpret_cast<uintptr_t>(source) + kDistance;
  for (int64_t line = 0; line < bytes; line += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + static_cast<uintptr_t>(line)));
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

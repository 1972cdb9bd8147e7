// Fewer page faults for scratch memory that is too large for the C library to keep between calls.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// Asks for large pages where the system has them; a wish, no more.
inline void use_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kPage - 1) / kPage * kPage;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace CMF_ISA
}  // namespace cmf

// Addresses that come from Python.
#pragma once

#include <stdint.h>

namespace cmf {

// An address as a pointer. `needed` says whether 0 (absent) is an error.
void* checked_pointer(const char* name, uintptr_t address, int alignment, bool needed);

}  // namespace cmf

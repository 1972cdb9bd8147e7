#include "bindings/checked_pointer.h"

#include <pybind11/pybind11.h>

#include <string>

namespace cmf {

void* checked_pointer(const char* name, uintptr_t address, int alignment, bool needed) {
  if (address == 0 && needed) {
    throw pybind11::value_error(std::string(name) + " must be an address for this problem, got 0");
  }
  if (address % static_cast<uintptr_t>(alignment) != 0) {
    throw pybind11::value_error(std::string(name) + " must be aligned to " +
                                std::to_string(alignment) + " bytes");
  }
  return reinterpret_cast<void*>(address);
}

}  // namespace cmf

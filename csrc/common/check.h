// What the checks of every problem share. Throw std::invalid_argument; host code alone.
#pragma once

#include <stdint.h>

#include <string>

namespace cmf {

[[noreturn]] void throw_invalid(const std::string& message);

// least <= value <= most
void check_range(const char* name, int64_t value, int64_t least, int64_t most);

// a · b · c · d elements of `itemsize` bytes can be addressed
void check_bytes(const char* name, int64_t a, int64_t b, int64_t c, int64_t d, int64_t itemsize);

}  // namespace cmf

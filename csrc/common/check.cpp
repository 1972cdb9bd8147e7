#include "common/check.h"

#include <stdexcept>

namespace cmf {

void throw_invalid(const std::string& message) { throw std::invalid_argument(message); }

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    throw_invalid(std::string(name) + " must be between " + std::to_string(least) + " and " +
                  std::to_string(most) + ", got " + std::to_string(value));
  }
}

void check_bytes(const char* name, int64_t a, int64_t b, int64_t c, int64_t d, int64_t itemsize) {
  int64_t total = a;
  bool overflow = __builtin_mul_overflow(total, b, &total);
  overflow |= __builtin_mul_overflow(total, c, &total);
  overflow |= __builtin_mul_overflow(total, d, &total);
  overflow |= __builtin_mul_overflow(total, itemsize, &total);
  if (overflow || total > (INT64_C(1) << 62)) {
    throw_invalid(std::string(name) + " has more bytes than can be addressed");
  }
}

}  // namespace cmf

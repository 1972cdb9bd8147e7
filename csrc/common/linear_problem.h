#pragma once

#include <stdint.h>

namespace cmf {

struct LinearProblem {
  int64_t rows;     // N
  int64_t inputs;   // C
  int64_t outputs;  // K
};

constexpr int64_t kMostLinearRows = 16;
// A weight gradient of more bytes is stored past the caches.
constexpr int64_t kLinearPastCaches = INT64_C(8) << 20;

}  // namespace cmf

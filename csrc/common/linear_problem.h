#pragma once

#include <stdint.h>

namespace cmf {

struct LinearProblem {
  int64_t rows;     // N
  int64_t inputs;   // C
  int64_t outputs;  // K
};

constexpr int64_t kMostLinearRows = 16;

}  // namespace cmf

// Integer arithmetic of how work is cut.
#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

CMF_HOST_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
CMF_HOST_DEVICE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
CMF_HOST_DEVICE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
CMF_HOST_DEVICE int64_t round_up(int64_t value, int64_t to) { return divide_up(value, to) * to; }

}  // namespace CMF_ISA
}  // namespace cmf

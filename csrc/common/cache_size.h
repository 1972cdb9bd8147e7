#pragma once

#include <stdint.h>

namespace cmf {

// Bytes of this machine's second-level cache, of one core; a usual size where it doesn't say.
int64_t second_cache_bytes();

}  // namespace cmf

// A hash of memory, to notice that weights changed. Not for security.
#pragma once

#include <stdint.h>

namespace cmf {

// 64 bits that depend on every byte and on nothing else, the number of threads included.
typedef uint64_t (*HashBytes)(const void* data, int64_t bytes, int threads);

}  // namespace cmf

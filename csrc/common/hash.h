// A hash of memory, to notice that weights changed. Not for security.
#pragma once

#include <stdint.h>

namespace cmf {

// 64 bits that depend on every byte of some blocks, on which block it is in, and on nothing else,
// the number of threads included.
typedef uint64_t (*HashBlocks)(const void* const* data, const int64_t* bytes, int64_t count,
                               int threads);

}  // namespace cmf

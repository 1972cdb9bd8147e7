#pragma once

#include "common/dtype.h"
#include "common/hash.h"

namespace cmf {
namespace CMF_ISA {

uint64_t hash_blocks(const void* const* data, const int64_t* bytes, int64_t count, int threads);

}  // namespace CMF_ISA
}  // namespace cmf

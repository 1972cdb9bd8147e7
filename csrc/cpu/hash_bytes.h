#pragma once

#include "common/dtype.h"
#include "common/hash.h"

namespace cmf {
namespace CMF_ISA {

uint64_t hash_bytes(const void* data, int64_t bytes, int threads);

}  // namespace CMF_ISA
}  // namespace cmf

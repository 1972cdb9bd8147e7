#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// `count` matrices [rows][columns] -> [columns][rows].
void transpose_matrices(const float* source, float* target, int64_t count, int64_t rows,
                        int64_t columns, int threads);

}  // namespace CMF_ISA
}  // namespace cmf

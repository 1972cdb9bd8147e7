// The last step of every bias gradient that is summed in parts.
#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// dbias [filters] = the sum over `partials` of sums [partial][filter], in order.
inline void add_partial_biases(const double* sums, int64_t partials, int64_t filters,
                               float* dbias) {
  for (int64_t k = 0; k < filters; ++k) {
    double total = 0;
    for (int64_t m = 0; m < partials; ++m) total += sums[m * filters + k];
    dbias[k] = static_cast<float>(total);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

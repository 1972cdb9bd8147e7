// Stores that pass by the caches: of large outputs, whose lines need not be read first.
#pragma once

#include "cpu/simd_memory.h"

namespace cmf {
namespace CMF_ISA {

// What is smaller may well be read from the cache next.
constexpr int64_t kStreamBytes = 4 << 20;

// `target` must lie on a vector's boundary; finish_streams before another thread may read.
CMF_HOST_DEVICE void stream(float* target, Vec<float> value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(target, bit_cast<__m512>(value));
#elif defined(__AVX2__)
  _mm256_stream_ps(target, bit_cast<__m256>(value));
#elif defined(__SSE2__)
  _mm_stream_ps(target, bit_cast<__m128>(value));
#else
  store<float>(target, value);
#endif
}

CMF_HOST_DEVICE void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace CMF_ISA
}  // namespace cmf

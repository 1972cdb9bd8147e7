// Multiply and add, a lane at a time (Dietzfelbinger's multiplicative hashing): for what else is
// given, each 64-bit word maps one to one, so that a single change is always noticed.
#include "cpu/hash_bytes.h"

#include <string.h>

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef VectorTypes<double>::Unsigned Words;
constexpr int kStreams = 4;  // a multiplication takes longer than a load
constexpr int kBlock = kStreams * CMF_VECTOR_BYTES;
constexpr uint64_t kPrime = 0x9e3779b97f4a7c15u;
constexpr int64_t kChunk = 64 * 1024;  // bytes that one thread hashes at once

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * kPrime;
  return hash ^ (hash >> 29);
}

uint64_t hash_chunk(const char* data, int64_t bytes) {
  Words streams[kStreams];
  for (int s = 0; s < kStreams; ++s) streams[s] = Words{} + (kPrime + static_cast<uint64_t>(s));
  int64_t i = 0;
  for (; i + kBlock <= bytes; i += kBlock) {
    for (int s = 0; s < kStreams; ++s) {
      Words words;
      __builtin_memcpy(&words, data + i + s * CMF_VECTOR_BYTES, sizeof words);
      streams[s] = (streams[s] ^ words) * kPrime;
    }
  }
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (int s = 0; s < kStreams; ++s) {
    for (int lane = 0; lane < CMF_VECTOR_BYTES / 8; ++lane) hash = mix(hash, streams[s][lane]);
  }
  for (; i < bytes; i += 8) {
    uint64_t word = 0;
    memcpy(&word, data + i, static_cast<size_t>(bytes - i < 8 ? bytes - i : 8));
    hash = mix(hash, word);
  }
  return hash;
}

}  // namespace

uint64_t hash_bytes(const void* data, int64_t bytes, int threads) {
  const char* source = static_cast<const char*>(data);
  const int64_t chunks = (bytes + kChunk - 1) / kChunk;
  const int parts = chunks < threads ? static_cast<int>(chunks) : threads;
  uint64_t total = 0;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static) reduction(+ : total) if (parts > 1)
#endif
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t left = bytes - i * kChunk;
    const uint64_t hash = hash_chunk(source + i * kChunk, left < kChunk ? left : kChunk);
    total += mix(hash, static_cast<uint64_t>(i));  // in any order: an addition modulo 2^64
  }
  return total;
}

}  // namespace CMF_ISA
}  // namespace cmf

// Two sums a lane over the 64-bit words: of the words, which every single change changes, and of
// the products of their halves, each with a key of its place, which words that trade places change
// too. (32-bit products: processors without AVX-512 have no vectors of 64-bit ones.)
#include "cpu/hash_bytes.h"

#include <string.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/integers.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef VectorTypes<double>::Unsigned Words;
constexpr int kStreams = 2;  // a multiplication takes longer than a load
constexpr int kBlock = kStreams * CMF_VECTOR_BYTES;
constexpr uint64_t kPrime = 0x9e3779b97f4a7c15u;
constexpr uint64_t kStep = 0xd1b54a32d192ed03u;  // from a place's key to the next
constexpr int64_t kChunk = 64 * 1024;            // bytes that one thread hashes at once
constexpr int64_t kAhead = 1024;  // bytes: further than processors fetch by themselves

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * kPrime;
  return hash ^ (hash >> 29);
}

// Of each lane the lower half times the upper one.
Words multiply_halves(Words words) {
#if defined(__AVX512F__)
  return bit_cast<Words>(
      _mm512_mul_epu32(bit_cast<__m512i>(words), bit_cast<__m512i>(words >> 32)));
#elif defined(__AVX2__)
  return bit_cast<Words>(
      _mm256_mul_epu32(bit_cast<__m256i>(words), bit_cast<__m256i>(words >> 32)));
#elif defined(__SSE2__)
  return bit_cast<Words>(_mm_mul_epu32(bit_cast<__m128i>(words), bit_cast<__m128i>(words >> 32)));
#else
  return (words & 0xffffffffu) * (words >> 32);
#endif
}

uint64_t hash_chunk(const char* data, int64_t bytes) {
  constexpr int kWords = CMF_VECTOR_BYTES / 8;
  Words sums[kStreams] = {}, products[kStreams] = {}, keys[kStreams];
  for (int s = 0; s < kStreams; ++s) {
    for (int lane = 0; lane < kWords; ++lane) {
      keys[s][lane] = kPrime * static_cast<uint64_t>(s * kWords + lane + 1);
    }
  }
  int64_t i = 0;
  for (; i + kBlock <= bytes; i += kBlock) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      const char* source = data + i + s * CMF_VECTOR_BYTES;
      __builtin_prefetch(source + kAhead);
      Words words;
      __builtin_memcpy(&words, source, sizeof words);
      sums[s] += words;
      products[s] += multiply_halves(words ^ keys[s]);
      keys[s] += kStep;
    }
  }
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (int s = 0; s < kStreams; ++s) {
    for (int lane = 0; lane < kWords; ++lane) {
      hash = mix(mix(hash, sums[s][lane]), products[s][lane]);
    }
  }
  for (; i < bytes; i += 8) {
    uint64_t word = 0;
    memcpy(&word, data + i, static_cast<size_t>(bytes - i < 8 ? bytes - i : 8));
    hash = mix(hash, word);
  }
  return hash;
}

}  // namespace

uint64_t hash_blocks(const void* const* data, const int64_t* bytes, int64_t count, int threads) {
  int64_t all = 0;
  for (int64_t block = 0; block < count; ++block) all += bytes[block];
  const int parts = static_cast<int>(most(1, least(threads, all / kChunk)));
  uint64_t total = 0;
#if defined(_OPENMP)
#pragma omp parallel num_threads(parts) reduction(+ : total) if (parts > 1)
#endif
  {
#if defined(_OPENMP)
    const int64_t part = omp_get_thread_num(), team = omp_get_num_threads();
#else
    const int64_t part = 0, team = 1;
#endif
    // each thread walks along all chunks, and takes its turns
    int64_t turn = part;
    for (int64_t block = 0; block < count; ++block) {
      const char* source = static_cast<const char*>(data[block]);
      const int64_t chunks = divide_up(bytes[block], kChunk);
      for (; turn < chunks; turn += team) {
        const int64_t first = turn * kChunk;
        const uint64_t hash = hash_chunk(source + first, least(bytes[block] - first, kChunk));
        // in any order: an addition modulo 2^64
        total += mix(mix(hash, static_cast<uint64_t>(turn)), static_cast<uint64_t>(block));
      }
      turn -= chunks;
    }
  }
  return total;
}

}  // namespace CMF_ISA
}  // namespace cmf

// A run of elements from or to memory, in as few accesses as it takes: 16 bytes each at most. The
// address is a multiple of the run's size, or of 16 where that is larger.
#pragma once

#include "cuda/device_math.h"

namespace cmf {
namespace CMF_ISA {

template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  typedef uint8_t type;
};
template <>
struct WordOf<2> {
  typedef uint16_t type;
};
template <>
struct WordOf<4> {
  typedef uint32_t type;
};
template <>
struct WordOf<8> {
  typedef uint2 type;
};
template <>
struct WordOf<16> {
  typedef uint4 type;
};

template <class T, int N>
struct Run {
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * N;
  typedef typename WordOf<(kBytes < 16 ? kBytes : 16)>::type Word;
  static constexpr int kWords = kBytes / static_cast<int>(sizeof(Word));

  __device__ __forceinline__ static void load(const T* at, T (&values)[N]) {
    Word words[kWords];
    const Word* source = reinterpret_cast<const Word*>(at);
#if defined(CMF_CUDA_SHIM)
    shim::check_aligned(source);
#endif
    CMF_UNROLL(kWords)
    for (int i = 0; i < kWords; ++i) words[i] = source[i];
    memcpy(values, words, sizeof words);
  }
  __device__ __forceinline__ static void store(T* at, const T (&values)[N]) {
    Word words[kWords];
    Word* target = reinterpret_cast<Word*>(at);
#if defined(CMF_CUDA_SHIM)
    shim::check_aligned(target);
#endif
    memcpy(words, values, sizeof words);
    CMF_UNROLL(kWords)
    for (int i = 0; i < kWords; ++i) target[i] = words[i];
  }
};

// N elements of storage type T as values of C.
template <class T, class C, int N>
__device__ __forceinline__ void load_run(const T* at, C (&values)[N]) {
  T stored[N];
  Run<T, N>::load(at, stored);
  CMF_UNROLL(N)
  for (int i = 0; i < N; ++i) values[i] = to_compute<C>(stored[i]);
}

template <class T, class C, int N>
__device__ __forceinline__ void store_run(T* at, const C (&values)[N]) {
  T stored[N];
  CMF_UNROLL(N)
  for (int i = 0; i < N; ++i) stored[i] = from_compute<T>(values[i]);
  Run<T, N>::store(at, stored);
}

// Indices of one byte or four.
template <int N>
__device__ __forceinline__ void load_codes(const void* codes, int itemsize, int64_t i,
                                           int (&values)[N]) {
  if (itemsize == 1) {
    uint8_t stored[N];
    Run<uint8_t, N>::load(static_cast<const uint8_t*>(codes) + i, stored);
    CMF_UNROLL(N)
    for (int v = 0; v < N; ++v) values[v] = stored[v];
  } else {
    int32_t stored[N];
    Run<int32_t, N>::load(static_cast<const int32_t*>(codes) + i, stored);
    CMF_UNROLL(N)
    for (int v = 0; v < N; ++v) values[v] = stored[v];
  }
}

template <int N>
__device__ __forceinline__ void store_codes(void* codes, int itemsize, int64_t i,
                                            const int (&values)[N]) {
  if (itemsize == 1) {
    uint8_t stored[N];
    CMF_UNROLL(N)
    for (int v = 0; v < N; ++v) stored[v] = static_cast<uint8_t>(values[v]);
    Run<uint8_t, N>::store(static_cast<uint8_t*>(codes) + i, stored);
  } else {
    int32_t stored[N];
    CMF_UNROLL(N)
    for (int v = 0; v < N; ++v) stored[v] = values[v];
    Run<int32_t, N>::store(static_cast<int32_t*>(codes) + i, stored);
  }
}

// The most elements of T that one access takes.
template <class T>
constexpr int kRunOf = 16 / static_cast<int>(sizeof(T));

inline bool is_aligned(const void* at, size_t bytes) {
  return reinterpret_cast<uintptr_t>(at) % bytes == 0;
}

}  // namespace CMF_ISA
}  // namespace cmf

// The inner product of every Winograd algorithm: a few rows (tiles) by two vectors of columns
// (output channels), all sums in registers.
#pragma once

#include "cpu/parts.h"
#include "cpu/simd.h"
#include "cpu/simd_prefetch.h"

namespace cmf {
namespace CMF_ISA {

// Sums in registers: kGemmRows x 2, beside two vectors of B and one broadcast of A.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kGemmRows = 14;  // of 32 registers
#elif defined(__AVX2__)
constexpr int kGemmRows = 6;  // of 16
#else
constexpr int kGemmRows = 4;  // of 16, and a product needs one of its own
#endif
constexpr int kGemmVectors = 2;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kTileBlock = 2 * kGemmRows;      // tiles whose products lie in cache together
constexpr int64_t kMostTileBlock = 3 * kGemmRows;  // where they are all tiles there are
#else
// A tile of few registers makes little of what it reads: let more share it. Measured with AVX2 on
// half a megabyte of second cache: 1.3 to 1.4 times as fast as with 2 and 3 (forward), 1.1 to 1.3
// (training).
constexpr int64_t kTileBlock = 8 * kGemmRows;
constexpr int64_t kMostTileBlock = 12 * kGemmRows;
#endif
// Whether the loop over a whole block's channels is unrolled: sums of few registers hide its
// instructions less.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kUnrolled = true;
#else
constexpr bool kUnrolled = false;
#endif
// Blocks by which A is fetched ahead of its use: some hundred cycles, what a cache that several
// cores share takes to answer. A block of narrow vectors is a tenth of one of wide ones.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kAheadBlocks = 2;
#else
constexpr int64_t kAheadBlocks = 8;
#endif

// Blocks of up to kLanes input channels that a sum runs over.
struct GemmBlocks {
  int count;
  const int32_t* index;  // which block of A and B, ascending
  const int32_t* lanes;  // channels of the block with that index
  bool add = false;      // to what m has
};

// Blocks that are summed from zero before they are added, those of index 0 to kSummedBlocks - 1 and
// so on: long sums round more.
constexpr int kSummedBlocks = 128 / kLanes<float>;

// m [rows][kVectors · kLanes] = sum over blocks and channels of A [block][row][lane] times
// B [block][lane][kVectors · kLanes]. `a_step`: floats from one block of A to the next. `soon`:
// floats that are read next, as many as A's blocks have channels times kLanes: they come into the
// second-level cache meanwhile.
template <int kRows, int kVectors>
void gemm_tile(const float* a, int64_t a_step, const float* b, const float* soon,
               const GemmBlocks& blocks, float* m) {
  typedef Vec<float> V;
  constexpr int kV = kLanes<float>;
  constexpr int kColumns = kVectors * kV;
  bool add = blocks.add;
  int last = 0;
  do {
    const int first = last;
    const int32_t end =
        blocks.count ? (blocks.index[first] / kSummedBlocks + 1) * kSummedBlocks : 0;
    while (last < blocks.count && blocks.index[last] < end) ++last;
    V sums[kRows][kVectors];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sums[row][v] = V{};
    }
    for (int i = first; i < last; ++i) {
      const int32_t block = blocks.index[i];
      const float* a_block = a + block * a_step;
      const float* b_block = b + static_cast<int64_t>(block) * (kV * kColumns);
      const int32_t lanes = blocks.lanes[block];
      const float* ahead = a_block + kAheadBlocks * a_step;
      const float* soon_block = soon + static_cast<int64_t>(block) * (kV * kV);
      const auto add_channel = [&](int32_t c) {
        V columns[kVectors];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          columns[v] = load<float>(b_block + c * kColumns + v * kV);
        }
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row) {
          const V value = broadcast<float>(a_block[row * kV + c]);
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) sums[row][v] += value * columns[v];
        }
      };
      if (kUnrolled && lanes == kV) {
        // nothing but what the products need: a thread that shares its core has half its decoders
#pragma GCC unroll 16
        for (int32_t c = 0; c < kV; ++c) {
          if (c * kLineFloats < kRows * kV) __builtin_prefetch(ahead + c * kLineFloats);
          if (c * kLineFloats < kV * kV) __builtin_prefetch(soon_block + c * kLineFloats, 0, 2);
          add_channel(c);
        }
        continue;
      }
      for (int32_t c = 0; c < lanes; ++c) {
        __builtin_prefetch(ahead + c * kV);
        __builtin_prefetch(soon_block + c * kV, 0, 2);
        add_channel(c);
      }
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        float* target = m + row * kColumns + v * kV;
        store<float>(target, add ? load<float>(target) + sums[row][v] : sums[row][v]);
      }
    }
    add = true;
  } while (last < blocks.count);
}

typedef void (*GemmTile)(const float* a, int64_t a_step, const float* b, const float* soon,
                         const GemmBlocks& blocks, float* m);

// The kernel for 1 <= rows <= kGemmRows and 1 or 2 vectors.
GemmTile gemm_tile_for(int rows, int vectors);

// Rows in nearly equal parts, each for one gemm_tile.
struct GemmParts : EvenParts {
  explicit GemmParts(int64_t rows) : EvenParts(rows, divide_up(rows, int64_t(kGemmRows))) {}
  int rows(int64_t part) const { return static_cast<int>(size(part)); }
};

// A [block][row][lane], or packed: [part][block][row][lane], of `blocks` blocks in memory; what a
// product reads is one piece then.
struct GemmRows {
  const float* data;
  int64_t blocks;
  bool packed;

  const float* part(const GemmParts& parts, int64_t part) const {
    return data + parts.first(part) * (packed ? blocks : 1) * kLanes<float>;
  }
  int64_t step(const GemmParts& parts, int64_t part) const {
    return (packed ? parts.rows(part) : parts.size()) * kLanes<float>;
  }
};

// gemm_tile over the parts. `next`: the vectors of columns that come next, `next_step` apart, one
// soon after each part.
inline void gemm_rows(const GemmRows& a, const GemmParts& parts, const float* b, int vectors,
                      const float* next, int64_t next_step, const GemmBlocks& blocks, float* m) {
  constexpr int kV = kLanes<float>;
  for (int64_t part = 0; part < parts.count(); ++part) {
    const float* soon = next + (part < vectors ? part : 0) * next_step;
    gemm_tile_for(parts.rows(part), vectors)(a.part(parts, part), a.step(parts, part), b, soon,
                                             blocks, m + parts.first(part) * vectors * kV);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

// Products of tiles of bfloat16, summed in float32: AMX where this file is compiled for it,
// elsewhere the same arithmetic by plain code.
//
// A matrix unit has eight tiles of 16 rows of 64 bytes. Tiles that are multiplied hold bfloat16:
// the left one [16 rows][32], the right one [16 pairs][16 columns][2]; sums are float [16
// rows][16].
#pragma once

#include <string.h>

#include "cpu/simd.h"

#if defined(__AMX_BF16__)
#define CMF_AMX 1
#endif

namespace cmf {
namespace CMF_ISA {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;                        // of a row
constexpr int kTileElements = kTileBytes / 2;         // bfloat16 of a row
constexpr int kTileColumns = kTileBytes / 4;          // sums of a row
constexpr int kTileSize = kTileRows * kTileElements;  // bfloat16 of a tile

#if defined(CMF_AMX)

// Its lifetime is that of the tiles' configuration in this thread.
class MatrixUnit {
 public:
  MatrixUnit() {
    struct {
      uint8_t palette;
      uint8_t start_row;
      uint8_t reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {};
    static_assert(sizeof config == 64, "the processor's layout");
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = kTileBytes;
      config.rows[i] = kTileRows;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  ~MatrixUnit() { __asm__ volatile("tilerelease"); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

  // Rows `step` bytes apart.
  template <int kTile>
  CMF_HOST_DEVICE void load(const void* source, int64_t step) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(source), "r"(step), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  CMF_HOST_DEVICE void store(void* target, int64_t step) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(target), "r"(step), "i"(kTile)
                     : "memory");
  }
  // sum += left · right
  template <int kSum, int kLeft, int kRight>
  CMF_HOST_DEVICE void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
  }
};

#else

class MatrixUnit {
 public:
  MatrixUnit() = default;
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

  template <int kTile>
  void load(const void* source, int64_t step) {
    const char* rows = static_cast<const char*>(source);
    for (int i = 0; i < kTileRows; ++i) memcpy(tiles_[kTile] + i * 16, rows + i * step, kTileBytes);
  }
  template <int kTile>
  void store(void* target, int64_t step) {
    char* rows = static_cast<char*>(target);
    for (int i = 0; i < kTileRows; ++i) memcpy(rows + i * step, tiles_[kTile] + i * 16, kTileBytes);
  }
  template <int kSum, int kLeft, int kRight>
  void multiply() {
    multiply(tiles_[kSum], tiles_[kLeft], tiles_[kRight]);
  }

 private:
  typedef Vec<float> V;
  typedef VectorTypes<float>::Unsigned Bits;
  static constexpr int kV = kLanes<float>;

  // The even elements are summed apart from the odd ones, as AMX does.
  static void multiply(uint32_t* sum, const uint32_t* left, const uint32_t* right) {
    for (int row = 0; row < kTileRows; ++row) {
      for (int column = 0; column < kTileColumns; column += kV) {
        V even = {}, odd = {};
        for (int pair = 0; pair < kTileRows; ++pair) {
          const uint32_t a = left[row * 16 + pair];
          Bits b;
          memcpy(&b, right + pair * 16 + column, sizeof b);
          even += broadcast<float>(bit_cast<float>(a << 16)) * bit_cast<V>(b << 16);
          odd += broadcast<float>(bit_cast<float>(a & 0xffff0000u)) * bit_cast<V>(b & 0xffff0000u);
        }
        V total;
        memcpy(&total, sum + row * 16 + column, sizeof total);
        total += even + odd;
        memcpy(sum + row * 16 + column, &total, sizeof total);
      }
    }
  }

  alignas(64) uint32_t tiles_[8][kTileRows * 16];
};

#endif

}  // namespace CMF_ISA
}  // namespace cmf

// Which pixel a row of the tile stands for.
//
// With 2×2 windows a slab of 16 rows is four windows side by side, 2 × 8 pixels: row 8 y + x. The
// vertical pair of a window is then two registers of a thread, the horizontal pair a shuffle away.
#pragma once

#include "cuda/conv_tile.h"

namespace cmf {
namespace CMF_ISA {

struct Pixel {
  int window;  // of the tile
  int y, x;    // in the window
};

__device__ __forceinline__ Pixel pixel_of_row(int row, bool pooled) {
  if (!pooled) return Pixel{row, 0, 0};
  return Pixel{row / 16 * 4 + row % 8 / 2, row / 8 % 2, row % 2};
}

// The tile's first window: its place in the batch, and in its image.
struct TilePlace {
  uint32_t first;
  uint32_t image;
  uint32_t within;

  __device__ __forceinline__ TilePlace(uint32_t first_, const Divisor& plane)
      : first(first_), image(divide(first_, plane)), within(first_ - image * plane.divisor) {}
};

// Window `window` of the tile: image (counted from the tile's first), row and column.
struct WindowPlace {
  int image, p, q;

  __device__ __forceinline__ WindowPlace(const TilePlace& tile, int window, const Divisor& plane,
                                         const Divisor& row) {
    const uint32_t at = tile.within + static_cast<uint32_t>(window);
    const uint32_t n = divide(at, plane), rest = at - n * plane.divisor;
    const uint32_t line = divide(rest, row);
    image = static_cast<int>(n);
    p = static_cast<int>(line);
    q = static_cast<int>(rest - line * row.divisor);
  }
};

}  // namespace CMF_ISA
}  // namespace cmf

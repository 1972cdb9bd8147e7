// Where the elements of a window lie in a frame of x, so that a tile's rows are one step apart.
//
// A frame holds the input rows of some rows of z, as three parts of bfloat16 with zeros around. The
// positions of a frame are z's pixels, row after row, `pitch` apart: tiles of 16 positions begin
// where the last one ended, in the middle of a row or not; what lies between rows is computed for
// nothing. A window is summed over in blocks of 32 elements.
#pragma once

#include "common/conv_act_pool2d_problem.h"
#include "cpu/bfloat16_parts.h"
#include "cpu/integers.h"
#include "cpu/matrix_unit.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kPanelTiles = 2;
constexpr int kPanelFilters = kPanelTiles * kTileColumns;
constexpr int64_t kBlockSize = kParts * kPanelTiles * kTileSize;  // bfloat16 of weights

struct ImplicitGemmLayout {
  // `rows`: the most of z that a frame is for.
  ImplicitGemmLayout(const ConvActPool2dProblem& problem, int64_t rows);

  // Few channels: a frame is [part][row of z][column of x][R][C], a window one run of S · R · C
  // elements. Many: [block of 32 channels][part][phases of the stride][row][column][32], a block is
  // 32 channels of a tap.
  bool merged;
  int64_t taps_height;  // R
  int64_t taps_width;   // S
  int64_t blocks;       // that a window is summed over
  int64_t position;     // elements from a position to the next
  int64_t pitch;        // positions from a row of z to the next
  int64_t part;         // elements from a part to the next
  int64_t frame;        // elements of a frame
  // merged
  int64_t run;  // R · C
  // not merged
  int64_t channel_blocks;
  int64_t phases_height;  // phases of rows that some tap reads
  int64_t phases_width;
  int64_t plane;  // elements from a phase to the next
  int64_t plane_rows;

  // Where block `block` of the window of position 0 begins.
  int64_t offset(const ConvActPool2dProblem& problem, int64_t block) const;
};

// Whether a window is one run.
bool merges_window(const ConvActPool2dProblem& problem);

// Elements of x's rows for z's rows z_first .. z_first + rows - 1 of image n -> frame. After
// `clear`.
class ImplicitGemmFrame {
 public:
  ImplicitGemmFrame(const ConvActPool2dProblem& problem, const ImplicitGemmLayout& layout)
      : p_(problem), layout_(layout) {}

  // `row` [S-th column ..][R][C] floats: of the merged form.
  int64_t scratch_floats() const { return layout_.merged ? row_elements() + 2 * 64 : 0; }
  void fill(const float* image, int64_t z_first, int64_t rows, float* scratch,
            uint16_t* frame) const;
  // Zeros that no fill writes over. Once.
  void clear(uint16_t* frame) const;

 private:
  int64_t row_elements() const { return layout_.pitch * layout_.position; }
  void fill_merged(const float* image, int64_t z_first, int64_t rows, float* scratch,
                   uint16_t* frame) const;
  void fill_blocks(const float* image, int64_t z_first, int64_t rows, uint16_t* frame) const;
  void fill_pixels(const float* row, int64_t block, uint16_t* target) const;
  void fill_planes(const float* row, int64_t block, uint16_t* target) const;

  const ConvActPool2dProblem& p_;
  const ImplicitGemmLayout& layout_;
};

}  // namespace CMF_ISA
}  // namespace cmf

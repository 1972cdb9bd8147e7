// Some rows of one image inside a frame of zeros, all phases of a convolution's stride side by
// side: position (a, b) has the pixels (stride · a + i - pad, stride · b + j - pad), channel c of
// phase (i, j) being channel (i · stride_width + j) · C + c.
#pragma once

#include "common/conv_act_pool2d_problem.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {

class MergedFrame {
 public:
  // At most `rows` x `columns` positions.
  MergedFrame(const ConvActPool2dProblem& problem, const float* x, int64_t rows, int64_t columns);
  MergedFrame(const MergedFrame&) = delete;
  MergedFrame& operator=(const MergedFrame&) = delete;

  // False where memory could not be had.
  bool prepare();

  // Rows of positions `first` .. first + rows - 1 of image n.
  void fill(int64_t n, int64_t first, int64_t rows);

  int64_t channels() const { return channels_; }
  int64_t row_step() const { return columns_ * channels_; }
  // Of a row that `fill` was given. A vector may be read from any channel on.
  const float* at(int64_t row, int64_t column) const {
    return frame_.data + ((row - first_) * columns_ + column) * channels_;
  }

 private:
  void copy_row(const float* row, float* target) const;
  const float* pixels_of_row(int64_t n, int64_t h);

  const ConvActPool2dProblem& p_;
  const float* x_;
  const int64_t rows_;
  const int64_t columns_;
  const bool dense_;        // x's rows have these channels, side by side, and no others
  const int64_t together_;  // floats of x that lie side by side in a position: a row of phases
  const int64_t channels_;  // of a position
  int64_t first_ = 0;
  Scratch<float> frame_;   // [rows][columns][channels]
  Scratch<float> pixels_;  // a row of x, channels side by side
};

}  // namespace CMF_ISA
}  // namespace cmf

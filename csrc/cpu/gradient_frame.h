// The gradient of a convolution's output, dz, expanded from the pooled gradient for a band of rows
// and some channels, in a frame of zeros: dz never exists as a whole.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/act_pool2d_backward_worker.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {

class GradientFrame {
 public:
  // A frame of at most `rows` x `columns` pixels of `lanes` channels, its first column that of z
  // at `first_column` (0 or less). Every column of z must lie inside.
  GradientFrame(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                int64_t rows, int64_t columns, int64_t first_column, int lanes);
  GradientFrame(const GradientFrame&) = delete;
  GradientFrame& operator=(const GradientFrame&) = delete;

  // False where memory could not be had.
  bool prepare();

  // Rows `first` .. first + rows - 1 of dz of image n, channels k_first .. k_first + k_count - 1,
  // k_count <= lanes. Rows outside z are 0.
  void fill(int64_t n, int64_t first, int64_t rows, int64_t k_first, int k_count);

  int64_t row_step() const { return columns_ * lanes_; }
  int64_t column_step() const { return lanes_; }
  // Pixel (row, column) of z.
  const float* at(int64_t row, int64_t column) const {
    return frame_.data + ((row - first_) * columns_ + column - first_column_) * lanes_;
  }

  // sums [lanes] = the sum over rows row_first .. row_last - 1 of z, in order.
  void sum_rows(int64_t row_first, int64_t row_last, float* sums) const;

 private:
  enum class Expansion { kPlain, kPairs, kThrees, kGeneral };

  // Rows of pooled data, channels side by side.
  struct View {
    const float* dy;
    const float* saved;  // null too where dy has been derived from it
    const uint8_t* codes;
    int64_t pixel;  // elements from one pixel to the next
  };

  // Whether `read` derives the gradients while it turns planes into channels side by side, or for
  // windows that overlap.
  bool derives() const {
    const Activation activation = static_cast<Activation>(p_.activation);
    return expansion_ != Expansion::kGeneral && p_.saved == Saved::kOutput &&
           (activation == Activation::kRelu || activation == Activation::kLeakyRelu);
  }
  View read(int64_t n, int64_t p_first, int64_t p_last, int64_t k_first, int k_count);
  void fill_plain(const View& view, int64_t p_first, int64_t p_last, int k_count);
  void fill_pairs(const View& view, int64_t p_first, int64_t p_last, int k_count);
  void fill_threes(const View& view, int64_t p_first, int64_t p_last, int64_t h_first,
                   int64_t h_last, int k_count);
  void fill_general(const View& view, int64_t p_first, int64_t h_first, int64_t h_last);
  float* row_of(int64_t row) const {
    return frame_.data + ((row - first_) * columns_ - first_column_) * lanes_;
  }

  const ActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  ActPool2dProblem band_problem_;  // of one image: its channels are the lanes
  BackwardWorker<float> worker_;   // kGeneral
  const PoolAxis vertical_;
  const int64_t rows_;
  const int64_t columns_;
  const int64_t first_column_;
  const int lanes_;
  const Expansion expansion_;
  const bool in_registers_;  // the activation's derivative
  const bool direct_;        // reads the pooled tensors where they are
  int64_t first_ = 0;        // the row of z that the frame begins with
  int64_t end_ = 0;          // and the one behind its last
  Scratch<float> frame_;     // [rows][columns][lanes]
  Scratch<float> dy_;        // [pooled rows][Q][lanes]
  Scratch<float> saved_;     // as dy_
  Scratch<uint8_t> codes_;   // as dy_
  Scratch<float> dense_;     // [rows][W][lanes], kGeneral
};

// One element of dz, for those that are needed singly.
float gradient_at(const ActPool2dProblem& problem, const ConvBackwardTensors& tensors, int64_t n,
                  int64_t k, int64_t row, int64_t column);

}  // namespace CMF_ISA
}  // namespace cmf

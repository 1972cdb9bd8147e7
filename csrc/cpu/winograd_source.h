// Where the tiles of a Winograd convolution come from: x itself where its channels lie side by
// side, or a band of its rows copied into a frame of zeros, channels side by side.
#pragma once

#include "cpu/scratch.h"
#include "cpu/winograd.h"

namespace cmf {
namespace CMF_ISA {

// Rows of the frame, and the tiles' grid.
struct FrameSize {
  int64_t rows;
  int64_t columns;
};

class WinogradSource {
 public:
  WinogradSource(const ConvActPool2dProblem& problem, const WinogradChannels& channels,
                 const float* x)
      : p_(problem),
        channels_(channels),
        x_(x),
        framed_(!problem.x_channels_last || channels.merged()) {}
  WinogradSource(const WinogradSource&) = delete;
  WinogradSource& operator=(const WinogradSource&) = delete;

  // False where memory could not be had.
  bool prepare(FrameSize most);

  bool framed() const { return framed_; }

  // Copies rows of image n, from row `first` (negative: padding) on, channels from `channel` on.
  void fill(int64_t n, int64_t first, int64_t rows, int64_t channel);

  // B^T d B of channel block `block` of the tile at output (row, column) of image n.
  template <class W>
  void transform(int64_t n, int64_t row, int64_t column, const ChannelBlock& block, float* v,
                 int64_t step) const;

 private:
  template <class W>
  void transform_edge(const float* image, int64_t row, int64_t column, const ChannelBlock& block,
                      float* v, int64_t step) const;
  void fill_row(const float* image, int64_t row, int64_t channel, float* target) const;

  const ConvActPool2dProblem& p_;
  const WinogradChannels& channels_;
  const float* x_;
  const bool framed_;
  int64_t pixel_ = 0;    // floats of a framed pixel
  int64_t columns_ = 0;  // of the frame
  int64_t first_ = 0;    // the input row that the frame begins with
  Scratch<float> memory_;
  float* frame_ = nullptr;
};

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/winograd_source_transform.h"

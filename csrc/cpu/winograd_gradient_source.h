// What the products of the backward multiply, transformed tile by tile: the gradient of the
// convolution's output, V = B^T g B, and the input, X = A x A^T.
#pragma once

#include "cpu/gradient_frame.h"
#include "cpu/winograd_gradient.h"
#include "cpu/winograd_gradient_tile.h"

namespace cmf {
namespace CMF_ISA {

// Vectors of x that are transformed at once: a cache line holds as much, or they fill a frame.
constexpr int kInputVectors = 4;

// x [rows of a run][W] of one vector of channels, or x itself where its channels lie side by side.
class InputTiles {
 public:
  InputTiles(const ConvActPool2dProblem& problem, const GradientPlan& plan, const float* x)
      : p_(problem), plan_(plan), x_(x) {}
  InputTiles(const InputTiles&) = delete;
  InputTiles& operator=(const InputTiles&) = delete;

  // False where memory could not be had.
  bool prepare(int outputs);

  // Copies what the tiles of a run need of one vector, where x must be copied at all.
  void fill(const TileRun& run, const PhaseVector& vector, int outputs);

  template <class W>
  void transform(int64_t n, int64_t strip, int64_t column, const PhaseVector& vector, float* target,
                 int64_t step) const;

 private:
  const ConvActPool2dProblem& p_;
  const GradientPlan& plan_;
  const float* x_;
  int64_t position_ = 0;  // that the frame's first row has
  Scratch<float> frame_;  // [positions][W][kLanes]
};

template <class W>
void InputTiles::transform(int64_t n, int64_t strip, int64_t column, const PhaseVector& vector,
                           float* target, int64_t step) const {
  constexpr int kM = W::kOutputs;
  constexpr int kV = kLanes<float>;
  const GradientAxis& vertical = plan_.vertical();
  const GradientAxis& horizontal = plan_.horizontal();
  const int64_t first = vertical.last - strip * kM;
  const int64_t h = vertical.pixel(first, vector.tap_height);
  const int64_t w = horizontal.pixel(horizontal.last - column * kM, vector.tap_width);
  const bool whole = h < p_.height && w < p_.width && h - (kM - 1) * p_.stride_height >= 0 &&
                     w - (kM - 1) * p_.stride_width >= 0;
  // a vector of pixel (i, j) of the tile lies at source - i · row - j · pixel
  const float* source;
  int64_t row, pixel;
  if (p_.x_channels_last) {
    source = x_ + ((n * p_.height + h) * p_.width + w) * p_.image_channels + vector.first;
    row = p_.stride_height * p_.width * p_.image_channels;
    pixel = p_.stride_width * p_.image_channels;
  } else {
    source = frame_.data + ((first - position_) * p_.width + w) * kV;
    row = p_.width * kV;
    pixel = p_.stride_width * kV;
  }
  if (whole && (!p_.x_channels_last || vector.lanes == kV)) {
    if (p_.x_channels_last) {  // the tile after the next
      CMF_UNROLL
      for (int i = 0; i < kM * kM; ++i) {
        __builtin_prefetch(source - i / kM * row - (2 * kM + i % kM) * pixel);
      }
    }
    spread_output_tile<W>(source, -row, -pixel, target, step);
    return;
  }
  float tile[kM * kM * kV];
  const int lanes = p_.x_channels_last ? vector.lanes : kV;
  for (int i = 0; i < kM; ++i) {
    const int64_t y = h - i * p_.stride_height;
    for (int j = 0; j < kM; ++j) {
      const int64_t z = w - j * p_.stride_width;
      const bool inside = y >= 0 && y < p_.height && z >= 0 && z < p_.width;
      store<float>(tile + (i * kM + j) * kV,
                   inside ? load_lanes<float>(source - i * row - j * pixel, lanes) : Vec<float>{});
    }
  }
  spread_output_tile<W>(tile, kM * kV, kV, target, step);
}

// The tile of dz at (strip, column), with its halo.
template <class W>
CMF_HOST_DEVICE void transform_gradient_tile(const GradientFrame& frame, const GradientPlan& plan,
                                             int64_t strip, int64_t column, int lane, float* target,
                                             int64_t step) {
  const float* source = frame.at(plan.vertical().last - strip * W::kOutputs,
                                 plan.horizontal().last - column * W::kOutputs);
  transform_input_tile<W>(source + lane, -frame.row_step(), -frame.column_step(), target, step);
}

}  // namespace CMF_ISA
}  // namespace cmf

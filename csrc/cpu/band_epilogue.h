// What follows a convolution, for a band of its output in scratch memory: pooling, activation, and
// the stores in either memory format.
//
// The scratch is [rows][columns][lanes]: `lanes` output channels of one image, side by side: whole
// vectors, or half of one.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/act_pool2d_worker.h"

namespace cmf {
namespace CMF_ISA {

// Rows p_first .. p_last - 1 of y in image n, channels k_first .. k_first + k_count - 1.
struct Band {
  int64_t n;
  int64_t p_first;
  int64_t p_last;
  int64_t k_first;
  int k_count;  // at most the scratch's lanes
};

// Elements from a pixel of an NHWC y to the next.
CMF_HOST_DEVICE int64_t y_pixel(const ActPool2dProblem& problem,
                                const ConvForwardTensors& tensors) {
  return tensors.y_pixel > 0 ? tensors.y_pixel : problem.image_channels;
}

class BandEpilogue {
 public:
  // `most_rows`: rows of y in the largest band.
  BandEpilogue(const ActPool2dProblem& problem, int lanes, int64_t most_rows);
  ~BandEpilogue();
  BandEpilogue(const BandEpilogue&) = delete;
  BandEpilogue& operator=(const BandEpilogue&) = delete;

  // False where memory could not be had.
  bool prepare();

  // z [rows][W][lanes]: the convolution's output, bias added, from row z_first on. Any pooling, or
  // none, and then a residual. Overwrites z.
  void pool(float* z, int64_t z_first, const Band& band, const ConvForwardTensors& tensors);

  // pooled [rows][Q][lanes]: the maxima of windows of z, bias added, of an activation that is
  // monotone; or averages after the activation. codes: as pooled, in bytes, or null. Overwrites
  // pooled.
  void finish(float* pooled, const uint8_t* codes, const Band& band,
              const ConvForwardTensors& tensors);

  // pooled [rows][Q][lanes] and codes, or null: what y and its index get.
  void store(const float* pooled, const uint8_t* codes, const Band& band,
             const ConvForwardTensors& tensors);

 private:
  ActPool2dProblem problem_;  // of one image's band: its channels are the lanes
  const ActPool2dProblem& whole_;
  ForwardWorker<float> worker_;
  const int lanes_;
  const int64_t most_rows_;
  float* y_ = nullptr;              // [most_rows][Q][lanes]
  float* preactivation_ = nullptr;  // as y_
  uint8_t* codes_ = nullptr;        // as y_
};

// Whether an NHWC y of whole lines is more than the caches keep until it is read again. `pixel`: as
// below.
bool streams_pixels(const ActPool2dProblem& problem, int64_t pixel, const float* target);

// Why a band's y can't take a residual; null where it can.
const char* band_residual_refusal(const ConvActPool2dProblem& problem);

// Where a band's values go: y, or what has its shape.
// source [rows · columns][lanes] -> target [.., K, ..] in the problem's format; `pixel`: elements
// from a pixel of an NHWC target to the next.
void store_band(const ActPool2dProblem& problem, const Band& band, const float* source, int lanes,
                int64_t pixel, float* target);
void store_band(const ActPool2dProblem& problem, const Band& band, const uint8_t* source, int lanes,
                int64_t pixel, uint8_t* target);

}  // namespace CMF_ISA
}  // namespace cmf

// What the tiles of a 1x1 convolution read, in the order in which they read it.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/filter_panels.h"
#include "cpu/gemm_tile.h"
#include "cpu/parts.h"

namespace cmf {
namespace CMF_ISA {

// Rows that are computed one tile after another: nearly equal tiles of up to kGemmRows.
struct TileRows {
  int64_t count;

  CMF_HOST_DEVICE int tiles() const {
    return static_cast<int>((count + kGemmRows - 1) / kGemmRows);
  }
  CMF_HOST_DEVICE Range tile(int i) const { return part_of(count, i, tiles()); }
  // All of them, for loops.
  CMF_HOST_DEVICE EvenParts parts() const { return EvenParts(count, tiles()); }
};

// x [N, C, H, W], in the problem's format; where scale and shift [C] are not null it is
// max(x · scale + shift, 0) that is packed: normalised, then ReLU; x · scale where only a scale
// [N, C] is there.
struct PointwiseInput {
  const float* x;
  const float* scale;
  const float* shift;

  // Of image n, from channel c on, or null.
  CMF_HOST_DEVICE const float* scale_at(const ConvActPool2dProblem& p, int64_t n, int64_t c) const {
    return scale ? scale + (shift ? 0 : n * p.in_channels) + c : nullptr;
  }
  CMF_HOST_DEVICE const float* shift_at(int64_t c) const { return shift ? shift + c : nullptr; }
};

// What is done to a value on its way: nothing, a normalisation with its ReLU, a product.
enum class Change { kNone, kNormalised, kScaled };

CMF_HOST_DEVICE Vec<float> normalised(Vec<float> x, Vec<float> scale, Vec<float> shift) {
  const Vec<float> z = x * scale + shift;
  return 0.0f > z ? broadcast(0.0f) : z;  // a NaN stays
}

inline PointwiseInput input_of(const ConvForwardTensors& t) {
  return PointwiseInput{static_cast<const float*>(t.x), static_cast<const float*>(t.x_scale),
                        static_cast<const float*>(t.x_shift)};
}

CMF_HOST_DEVICE PointwiseInput plain(const float* x) { return PointwiseInput{x, nullptr, nullptr}; }

// Whether an image's pixels are worth being columns: few of those computed don't exist.
bool fills_columns(int64_t pixels);

// Whether the broadcast side are the filters: NCHW in and out, without a pooling, and images whose
// pixels fill columns.
bool filters_are_rows(const ConvActPool2dProblem& problem);

// The weights [K, C] as the tiles read them: as columns [K / kTileLanes][C][kTileLanes], as rows
// tile by tile [C / kLanes][rows][kLanes].
int64_t packed_weights_size(const ConvActPool2dProblem& problem);
void pack_weights(const ConvActPool2dProblem& problem, const float* w, float* packed, int threads);

// Some of the weights [K, C] as one tile of rows [C / kLanes][rows][kLanes]; filter k times
// w_scale[k], where that is not null.
void pack_filter_tile(const ConvActPool2dProblem& problem, const float* w, const float* w_scale,
                      Range tile, float* packed);

// The transposed weights [C, K], for the input gradient: as columns [C /
// kTileLanes][K][kTileLanes], as rows tile by tile [K / kLanes][rows][kLanes].
void pack_turned_weights(const ConvActPool2dProblem& problem, const float* w, bool as_columns,
                         float* packed, int threads);

// Pixels of the convolution's output, numbered from n · H' · W' on for image n: what x has there,
// as one tile [C / kLanes][pixels][kLanes]; channels that don't exist are 0.
void pack_tile(const ConvActPool2dProblem& problem, const PointwiseInput& input, Range pixels,
               float* packed);

// The same, tile by tile as TileRows has them.
void pack_pixels(const ConvActPool2dProblem& problem, const PointwiseInput& input, Range pixels,
                 float* packed);

// Up to kTileLanes pixels of image n of an NCHW x as columns [C][kTileLanes], filled up with zeros.
void pack_columns(const ConvActPool2dProblem& problem, const PointwiseInput& input, int64_t n,
                  Range pixels, float* packed);

}  // namespace CMF_ISA
}  // namespace cmf

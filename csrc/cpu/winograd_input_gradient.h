// dx: products of the transformed tiles of dz and the transformed weights, their way back from the
// transform domain, and the stores in either memory format.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/simd_transpose.h"
#include "cpu/transposed_epilogue.h"
#include "cpu/winograd_gradient.h"
#include "cpu/winograd_turned_weights.h"

namespace cmf {
namespace CMF_ISA {

constexpr int64_t kStreamBytes = 4 << 20;  // a smaller dx may well be read from the cache next

// dx of one vector of channels at pixel (h, w) of image n, tap by tap, of `taps` a stride, for the
// tiles that a transform can't compute: what is not finite would spread.
void direct_input_gradient(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                           int64_t n, int64_t h, int64_t w, const PhaseVector& vector, int taps,
                           float* target);

template <class W>
class InputGradient {
 public:
  static constexpr int kM = W::kOutputs;
  static constexpr int kV = kLanes<float>;

  // `turned`: U of all groups, or null: made of w anew.
  InputGradient(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                const GradientPlan& plan, const float* turned)
      : p_(problem),
        t_(tensors),
        plan_(plan),
        dx_(static_cast<float*>(tensors.dx)),
        turned_(turned),
        epilogue_(tensors.transposed) {
    const int64_t bytes = p_.pool.batch * p_.image_channels * p_.height * p_.width * 4;
    // vectors of several pixels or planes in turn
    streams_ =
        kV == kLineFloats && !plan_.adds() && bytes >= kStreamBytes &&
        (!p_.x_channels_last || (p_.image_channels % kV == 0 &&
                                 reinterpret_cast<uintptr_t>(dx_) % sizeof(Vec<float>) == 0));
  }
  InputGradient(const InputGradient&) = delete;
  InputGradient& operator=(const InputGradient&) = delete;

  // False where memory could not be had.
  bool prepare() {
    const int64_t area = p_.kernel_height * p_.kernel_width;
    return (turned_ || (u_.allocate(turned_group_floats<W>(plan_)) && taps_.allocate(area * kV))) &&
           m_.allocate(W::kFrequencies * kMostTileBlock * kGroupColumns) &&
           stage_.allocate(kMostTileBlock * kM * kM * kGroupColumns);
  }

  // Channels of group `group`, chunks of tiles first .. last - 1.
  void run(const GradientBlock& block, const float* v, int64_t group, int first, int last) {
    const float* u = group_weights(group);
    for (int chunk = first; chunk < last; ++chunk) {
      multiply(block.chunks(), chunk, v, u, group);
      store_chunk(block, chunk, group);
    }
  }

 private:
  const float* group_weights(int64_t group) {
    if (turned_) return turned_ + group * turned_group_floats<W>(plan_);
    if (group != transformed_) {
      turn_group_weights<W>(p_, plan_, group, FilterLayout(p_, t_.w_channels_last),
                            static_cast<const float*>(t_.w), taps_.data, u_.data);
    }
    transformed_ = group;
    return u_.data;
  }

  // M [frequency][tile][column]
  void multiply(const TileChunks& chunks, int chunk, const float* v, const float* weights,
                int64_t group) {
    const int64_t first = chunks.first[chunk];
    const int64_t size = chunks.first[chunk + 1] - first;
    const PhaseGroup& g = plan_.group(group);
    const int64_t columns = g.vectors * kV;
    const int64_t count = plan_.k_blocks();
    const GemmBlocks blocks = plan_.filter_blocks();
    const PanelLayout layout = {W::kFrequencies, count};
    for (int f = 0; f < W::kFrequencies; ++f) {
      float* m = m_.data + f * size * columns;
      if (plan_.vector(g.vector).skips(f, W::kAlpha)) {
        for (int64_t i = 0; i < size * columns; i += kV) store<float>(m + i, Vec<float>{});
        continue;
      }
      const int64_t step = count * kV * columns + kTurnedPadding;
      const float* u = weights + f * step;
      const GemmRows rows = {v + layout.at(chunk, first, size, f, 0), count, false};
      gemm_rows(rows, GemmParts(size), u, g.vectors, u + step, count * kV * kV, blocks, m);
    }
  }

  void store_chunk(const GradientBlock& block, int chunk, int64_t group) {
    const TileChunks chunks = block.chunks();
    const int64_t first = chunks.first[chunk];
    const int64_t size = chunks.first[chunk + 1] - first;
    const PhaseGroup& g = plan_.group(group);
    const int64_t columns = g.vectors * kV;
    for (int64_t i = 0; i < size; ++i) {
      const GradientBlock::Place place = block.place(plan_, first + i);
      for (int v = 0; v < g.vectors; ++v) {
        const PhaseVector& vector = plan_.vector(g.vector + v);
        Vec<float> z[kM][kM];
        transform_output_tile<W>(m_.data + i * columns + v * kV, size * columns, z);
        Vec<float> sum = z[0][0];
        CMF_UNROLL
        for (int j = 1; j < kM * kM; ++j) sum += z[j / kM][j % kM];
        // infinity and NaN anywhere in the tile spread over all of it
        if (__builtin_expect(any_nan(sum - sum), 0)) direct_tile(place, vector, z);
        epilogue_.apply(&z[0][0], kM * kM, vector.first, vector.lanes);
        if (p_.x_channels_last) {
          store_pixels(place, vector, z);
        } else {
          float* stage = stage_.data + (i * kGemmVectors + v) * kM * kM * kV;
          CMF_UNROLL
          for (int j = 0; j < kM * kM; ++j) store<float>(stage + j * kV, z[j / kM][j % kM]);
        }
      }
    }
    if (!p_.x_channels_last) store_planes(block, first, size, g);
  }

  int64_t pixel_row(const GradientBlock::Place& place, const PhaseVector& vector) const {
    return plan_.vertical().pixel(plan_.vertical().last - place.strip * kM, vector.tap_height);
  }
  int64_t pixel_column(int64_t column, const PhaseVector& vector) const {
    return plan_.horizontal().pixel(plan_.horizontal().last - column * kM, vector.tap_width);
  }

  __attribute__((noinline)) void direct_tile(const GradientBlock::Place& place,
                                             const PhaseVector& vector,
                                             Vec<float> (&z)[kM][kM]) const {
    for (int i = 0; i < kM; ++i) {
      const int64_t h = pixel_row(place, vector) - i * p_.stride_height;
      for (int j = 0; j < kM; ++j) {
        const int64_t w = pixel_column(place.column, vector) - j * p_.stride_width;
        if (h < 0 || h >= p_.height || w < 0 || w >= p_.width) continue;
        float values[kV];
        direct_input_gradient(p_, t_, place.n, h, w, vector, W::kTaps, values);
        z[i][j] = load<float>(values);
      }
    }
  }

  CMF_HOST_DEVICE void put(float* target, Vec<float> value, int lanes) const {
    if (plan_.adds()) value += load_lanes<float>(target, lanes);
    store_lanes<float>(target, value, lanes);
  }

  CMF_HOST_DEVICE void store_pixels(const GradientBlock::Place& place, const PhaseVector& vector,
                                    const Vec<float> (&z)[kM][kM]) const {
    const int64_t h = pixel_row(place, vector);
    const int64_t w = pixel_column(place.column, vector);
    const int64_t row = p_.stride_height * p_.width * p_.image_channels;
    const int64_t pixel = p_.stride_width * p_.image_channels;
    float* target =
        dx_ + ((place.n * p_.height + h) * p_.width + w) * p_.image_channels + vector.first;
    const bool whole = h < p_.height && w < p_.width && h - (kM - 1) * p_.stride_height >= 0 &&
                       w - (kM - 1) * p_.stride_width >= 0 && vector.lanes == kV;
    if (whole && streams_) {
      CMF_UNROLL
      for (int i = 0; i < kM; ++i) {
        CMF_UNROLL
        for (int j = 0; j < kM; ++j) stream(target - i * row - j * pixel, z[i][j]);
      }
      return;
    }
    CMF_UNROLL
    for (int i = 0; i < kM; ++i) {
      const int64_t y = h - i * p_.stride_height;
      CMF_UNROLL
      for (int j = 0; j < kM; ++j) {
        const int64_t x = w - j * p_.stride_width;
        if (whole || (y >= 0 && y < p_.height && x >= 0 && x < p_.width)) {
          put(target - i * row - j * pixel, z[i][j], vector.lanes);
        }
      }
    }
  }

  // The staged tiles, strip by strip: their pixels, in the order of x, become lanes.
  void store_planes(const GradientBlock& block, int64_t first, int64_t size, const PhaseGroup& g) {
    const int64_t across = plan_.horizontal().tiles;
    for (int64_t i = 0; i < size;) {
      const GradientBlock::Place place = block.place(plan_, first + i);
      const int64_t room = across - place.column;
      const int64_t count = size - i < room ? size - i : room;
      for (int v = 0; v < g.vectors; ++v) {
        const PhaseVector& vector = plan_.vector(g.vector + v);
        for (int row = 0; row < kM; ++row) {
          const int64_t h = pixel_row(place, vector) - row * p_.stride_height;
          if (h < 0 || h >= p_.height) continue;
          store_row(place, vector, h, count,
                    stage_.data + (i * kGemmVectors + v) * kM * kM * kV + row * kM * kV);
        }
      }
      i += count;
    }
  }

  // `stage`: the row of the first of `count` tiles; its pixels come last position first.
  void store_row(const GradientBlock::Place& place, const PhaseVector& vector, int64_t h,
                 int64_t count, const float* stage) {
    const int64_t plane = p_.height * p_.width;
    const int64_t last = pixel_column(place.column, vector);
    // a chunk may begin with a tile that lies before the image as a whole
    if (last < 0) return;
    float* target = dx_ + (place.n * p_.image_channels + vector.first) * plane + h * p_.width;
    // pixel last - stride · i is i of the tiles
    const int64_t stride = p_.stride_width;
    int64_t begin = last >= p_.width ? (last - p_.width) / stride + 1 : 0;
    int64_t end = count * kM;
    if (last - stride * (end - 1) < 0) end = last / stride + 1;
    for (; begin < end; end -= kV) {
      const int lanes = end - begin < kV ? static_cast<int>(end - begin) : kV;
      Vec<float> values[kV];
      for (int j = 0; j < kV; ++j) {
        const int64_t i = end - 1 - j;
        values[j] = j < lanes ? load<float>(stage + (i / kM * kGemmVectors * kM * kM + i % kM) * kV)
                              : Vec<float>{};
      }
      transpose_block<float>(values);
      float* pixel = target + last - stride * (end - 1);
      for (int c = 0; c < vector.lanes; ++c) {
        float* start = pixel + c * plane;
        if (stride == 1 && lanes == kV && streams_ &&
            reinterpret_cast<uintptr_t>(start) % sizeof(Vec<float>) == 0) {
          stream(start, values[c]);
        } else if (stride == 1) {
          put(start, values[c], lanes);
        } else if (stride == 2) {
          store_alternate(start, values[c], lanes);
        } else {
          for (int j = 0; j < lanes; ++j) start[j * stride] = values[c][j];
        }
      }
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const GradientPlan& plan_;
  float* dx_;
  const float* turned_;  // U of all groups, or null
  const TransposedEpilogue epilogue_;
  bool streams_;
  int64_t transformed_ = -1;  // the group whose weights U holds
  Scratch<float> u_;
  Scratch<float> m_;
  Scratch<float> taps_;
  Scratch<float> stage_;  // [tile][vector][pixel][lane]
};

}  // namespace CMF_ISA
}  // namespace cmf

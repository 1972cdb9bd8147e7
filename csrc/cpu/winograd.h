// The Winograd convolutions: what their files share.
//
// A convolution of any stride is one of stride 1 over the phases of its input: phase (i, j) has the
// pixels (i + stride · a, j + stride · b), and its filter the taps (i + stride · r, j + stride ·
// s). Each phase's channels are further input channels; their products add up in the transform
// domain.
//
// So are those of a part of a filter that has more taps than r: 7 taps are 4 and 3, and what those
// of the second part see is the input, 4 pixels on. Of 7x7 taps F(4, 4) leaves 12.25 products an
// output, of 49. A phase or a part of one is known by its first tap along each axis.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/gemm_tile.h"
#include "cpu/integers.h"
#include "cpu/simd.h"
#include "cpu/winograd_matrices.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kWinogradColumns = kGemmVectors * kLanes<float>;  // output channels of a block

// Vectors of the block of output channels that begins with channel `k`.
inline int filter_vectors(const ConvActPool2dProblem& p, int64_t k) {
  return p.pool.channels - k > kLanes<float> ? kGemmVectors : 1;
}

// Up to kLanes input channels of one phase, or of one part of its taps.
struct ChannelBlock {
  int32_t tap_height;  // its first
  int32_t tap_width;
  int32_t first;  // channel
  int32_t lanes;
};

// How a problem's channels are laid out in transformed data and weights.
class WinogradChannels {
 public:
  WinogradChannels() = default;
  ~WinogradChannels();
  WinogradChannels(const WinogradChannels&) = delete;
  WinogradChannels& operator=(const WinogradChannels&) = delete;

  // `taps`: r of F(m, r). False where memory could not be had.
  bool prepare(const ConvActPool2dProblem& problem, int taps);

  int count() const { return count_; }
  const ChannelBlock& operator[](int i) const { return blocks_[i]; }

  // Floats from one frequency of transformed data (of `tiles`) or weights to the next: a line more
  // than they take, because frequencies a multiple of 4096 bytes apart would share the sets of a
  // cache.
  int64_t data_step(int64_t tiles) const { return (count_ * tiles + 1) * kLanes<float>; }
  int64_t weight_step(int64_t columns) const {
    return (int64_t(count_) * kLanes<float> + 1) * columns;
  }

  // The blocks that frequency (i, j) sums over: a phase with fewer taps than r has
  // weight 0 at infinity.
  GemmBlocks at(bool infinite_height, bool infinite_width) const {
    const int list = 2 * infinite_height + infinite_width;
    return GemmBlocks{counts_[list], index_ + list * count_, lanes_};
  }
  // Those of them that are of blocks first .. last - 1, added to what those before them gave.
  GemmBlocks at(bool infinite_height, bool infinite_width, int first, int last) const {
    GemmBlocks blocks = at(infinite_height, infinite_width);
    blocks.add = first > 0;
    while (blocks.count && *blocks.index < first) ++blocks.index, --blocks.count;
    while (blocks.count && blocks.index[blocks.count - 1] >= last) --blocks.count;
    return blocks;
  }

  // The stride's columns stand side by side as channels of one pixel: for few channels, whose
  // vectors would be nearly empty. Phases are then those of rows alone.
  bool merged() const { return merged_; }
  int64_t channels_of_pixel() const { return pixel_; }

 private:
  bool merged_ = false;
  int64_t pixel_ = 0;
  int count_ = 0;
  int counts_[4] = {0, 0, 0, 0};
  ChannelBlock* blocks_ = nullptr;
  int32_t* index_ = nullptr;  // [4][count]
  int32_t* lanes_ = nullptr;  // [count]
};

// Taps of a filter from tap `first` on: first, first + stride, ...
inline int64_t taps_from(int64_t kernel, int64_t stride, int64_t first) {
  return kernel <= first ? 0 : divide_up(kernel - first, stride);
}

// r of the F(m, r) that a problem takes, and how many parts of r taps its filter has.
int winograd_taps(const ConvActPool2dProblem& problem);
constexpr int64_t kMostParts = 3;  // along an axis
struct WinogradParts {
  int64_t height;
  int64_t width;

  int64_t count() const { return height * width; }
};
WinogradParts winograd_parts(const ConvActPool2dProblem& problem);
// m of the gradients: 4; for 3 taps 5 where it covers the images with clearly fewer products (13
// pixels are 3 tiles of 5, 21 products, or 4 of 4, 24 products), and 2 where few tiles share many
// weights.
int winograd_gradient_outputs(const ConvActPool2dProblem& problem);
// m of the forward, where windows of 2x2 would straddle tiles of 5.
int winograd_outputs(const ConvActPool2dProblem& problem);

// body(Winograd<m, r>{}), m being `outputs`.
template <class Body>
auto with_winograd(const ConvActPool2dProblem& problem, int outputs, const Body& body) {
  switch (winograd_taps(problem)) {
    case 2:
      return body(Winograd<4, 2>{});
    case 3:
      if (outputs == 2) return body(Winograd<2, 3>{});
      return outputs == 5 ? body(Winograd<5, 3>{}) : body(Winograd<4, 3>{});
    case 4:
      return body(Winograd<4, 4>{});
    default:
      return body(Winograd<4, 5>{});
  }
}

// Floats of transformed weights: U [K blocks][frequency][channel block][lane][columns].
int64_t winograd_prepared_size(const ConvActPool2dProblem& problem);
bool winograd_prepare(const ConvActPool2dProblem& problem, const void* w, void* prepared,
                      int threads);

// Whether `winograd_forward` takes weights that nobody prepared: so few tiles share them that it
// transforms a part of them, multiplies and comes to the next while the part is in a cache; and so
// many filters that no thread is idle.
bool winograd_transforms_weights(const ConvActPool2dProblem& problem, int threads);
bool winograd_reads_weights(const ConvActPool2dProblem& problem, int threads);

const char* winograd_refusal(const ConvActPool2dProblem& problem, bool backward);
bool winograd_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                      int threads);

// F(6x6, 3x3): 9 outputs for 16 multiplications where F(4x4) has 4 for 9; rounds 6 times more.
int64_t winograd_f6_prepared_size(const ConvActPool2dProblem& problem);
bool winograd_f6_prepare(const ConvActPool2dProblem& problem, const void* w, void* prepared,
                         int threads);
const char* winograd_f6_refusal(const ConvActPool2dProblem& problem, bool backward);
bool winograd_f6_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                         int threads);

}  // namespace CMF_ISA
}  // namespace cmf

// What the convolution's kernels take.
#include <algorithm>

#include "common/activation.h"
#include "cuda/conv_host.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kMostElements = (INT64_C(1) << 31) - 1;
constexpr int64_t kTileImages = 128;  // that a tile of windows may look into, at most

// Whether each window lies inside the convolution's output, and none meets another.
bool whole_windows(const ActPool2dProblem& p) {
  return p.pool_height == 2 && p.pool_width == 2 && p.pool_stride_height == 2 &&
         p.pool_stride_width == 2 && p.pool_pad_height == 0 && p.pool_pad_width == 0 &&
         2 * p.out_height <= p.height && 2 * p.out_width <= p.width;
}

// Elements between the first and the last image that a tile looks into.
bool tile_fits(int64_t windows_an_image, int64_t image) {
  const int64_t images = kTileImages / windows_an_image + 2;
  return image <= kMostElements / images;
}

}  // namespace

const char* conv_refusal(const ConvActPool2dProblem& problem, bool backward) {
  const ActPool2dProblem& pool = problem.pool;
  if (pool.itemsize == 8) return "multiplies float32, float16 and bfloat16";
  if (problem.groups != 1) return "takes one group alone";
  if (pool.pool != Pool::kNone && !whole_windows(pool)) {
    return "pools windows of 2x2 at stride 2 that lie inside the convolution's output, or none";
  }
  if (backward && pool.saved == Saved::kInput && pool.pool != Pool::kNone) {
    return "keeps no convolution output for the backward of this activation's average";
  }
  const int64_t filters = conv_filters_row(problem);
  const int64_t taps = problem.kernel_height * problem.kernel_width;
  const int64_t most_pixels = kMostElements / 2;
  if (pool.height > most_pixels / pool.width || problem.height > most_pixels / problem.width ||
      pool.batch > most_pixels / (pool.height * pool.width) ||
      pool.batch > most_pixels / (problem.height * problem.width)) {
    return "takes less than 2^30 pixels";
  }
  if (problem.in_channels > kMostElements / taps / filters / 2) {
    return "takes less than 2^30 elements of weights";
  }
  const int64_t pixels = problem.height * problem.width;
  // of the smallest phase of the input gradient
  const int64_t phase = std::max<int64_t>(1, problem.height / problem.stride_height) *
                        std::max<int64_t>(1, problem.width / problem.stride_width);
  if (problem.in_channels > kMostElements / pixels / 2 || filters > kMostElements / pixels / 2 ||
      !tile_fits(pool.out_height * pool.out_width, problem.in_channels * pixels) ||
      !tile_fits(phase, filters * pool.out_height * pool.out_width)) {
    return "takes images of which a tile sees less than 2^31 elements";
  }
  const int64_t reach =
      problem.dilation_height * problem.kernel_height + problem.height + 2 * problem.pad_height;
  const int64_t reach_w =
      problem.dilation_width * problem.kernel_width + problem.width + 2 * problem.pad_width;
  if (reach > kMostElements / 4 || reach_w > kMostElements / 4) {
    return "takes less padding";
  }
  return nullptr;
}

Multiply conv_multiply(const ConvActPool2dProblem& problem, bool tf32) {
  switch (static_cast<DType>(problem.pool.dtype)) {
    case DType::kBFloat16:
      return Multiply::kBFloat16;
    case DType::kFloat16:
      return Multiply::kHalf;
    default:
      return tf32 ? Multiply::kTf32 : Multiply::kFloat32;
  }
}

bool conv_reads_chunks(const ConvActPool2dProblem& problem) {
  return problem.x_channels_last && problem.in_channels % vector_elements(problem) == 0;
}

int64_t conv_filters_row(const ConvActPool2dProblem& problem) {
  const int64_t vector = vector_elements(problem);
  return (problem.pool.channels + vector - 1) / vector * vector;
}

Expand expand_of(const ConvActPool2dProblem& problem) {
  if (problem.pool.pool == Pool::kNone) return Expand::kNothing;
  if (problem.pool.pool == Pool::kMax) return Expand::kChosen;
  return problem.pool.saved == Saved::kMask ? Expand::kMasked : Expand::kEverywhere;
}

float slope_of(const ConvActPool2dProblem& problem) {
  const bool leaky = static_cast<Activation>(problem.pool.activation) == Activation::kLeakyRelu;
  return leaky ? static_cast<float>(problem.pool.activation_param) : 0.0f;
}

}  // namespace CMF_ISA
}  // namespace cmf

// What the kernels of the implicit matrix products get: plain numbers, computed by the host.
#pragma once

#include <stdint.h>

#include "common/dtype.h"
#include "cuda/runtime.h"

namespace cmf {
namespace CMF_ISA {

// How operands are multiplied; sums are float32.
enum class Multiply : int32_t { kBFloat16, kHalf, kTf32, kFloat32 };

// n / d by a product, for n < 2^31.
struct Divisor {
  uint32_t divisor;
  uint32_t multiplier;  // 2^(32 + shift) / d, rounded up
  uint32_t shift;
};

__device__ __forceinline__ uint32_t divide(uint32_t n, const Divisor& d) {
  return d.divisor == 1 ? n : __umulhi(n, d.multiplier) >> d.shift;
}

// Which elements of the convolution's output a window takes, and what is kept of them.
enum class Window : int32_t {
  kNone,       // a row of the product is an element of the result
  kMaximum,    // 2×2, in registers, before an activation that never decreases
  kAverage,    // 2×2, in registers, of a piecewise linear activation
  kMaximumOf,  // 2×2 in shared memory, after any activation
  kAverageOf,
};

// A piecewise linear activation: z · below for z < 0, and no more than cap.
struct PiecewiseLinear {
  float below;
  float cap;  // NaN where there is none
  bool dead;  // below 0 is 0 whatever comes; NaN passes a gradient, as relu has it
};

// What stands between a pooled gradient and the convolution's output's.
enum class Expand : int32_t {
  kNothing,     // no pooling
  kEverywhere,  // 2×2: each of the window gets it
  kChosen,      // 2×2: the index says which one
  kMasked,      // 2×2: a bit each; where it is 0 the gradient is multiplied by `slope`
};

// rows · columns = source · weights: a forward convolution, or one phase of its input gradient.
//   row     an output pixel of the convolution (four of a window together), or an input pixel
//   column  a filter, or a channel
//   reduced taps times chunks of 16 bytes of channels, or of filters
struct RowsProblem {
  // the source image [N, height, width, depth] that taps look into: x, or the pooled gradient
  const void* source;
  const uint8_t* index;  // beside a pooled gradient
  const void* weights;   // [columns, taps, depth]
  int64_t image;         // elements from one source image to the next
  int32_t stride_h;      // elements from one source row to the next
  int32_t stride_w;
  int32_t stride_c;  // of single elements alone
  int32_t height;    // of the source before pooling: what is outside is 0
  int32_t width;
  // row pixel (h, w) and tap (r, s) meet at (h · scale_h + shift_h + r · step_h, ...)
  int32_t scale_h, scale_w;
  int32_t shift_h, shift_w;
  int32_t step_h, step_w;
  int32_t taps_h, taps_w;  // both 0 where no tap meets these rows
  int32_t chunks;          // of 16 bytes of depth
  int32_t weights_row;     // elements of a column's weights
  int32_t weights_first;   // where tap (0, 0) begins in it, and how far the next ones are
  int32_t weights_tap_h;
  int32_t weights_tap_w;
  int32_t depth;      // channels; of single elements alone
  bool wide_weights;  // weights can be read 16 bytes at a time; of single elements alone
  Expand expand;
  float slope;

  // rows and columns
  int64_t windows;  // N · P · Q
  Divisor plane;    // P · Q
  Divisor row;      // Q
  int32_t columns;
  Window window;

  // the result [N, columns, P, Q] by strides
  void* y;
  void* preactivation;  // or null; as y
  uint8_t* kept;        // or null: index or mask [N, P, Q, kept_row]
  const void* bias;     // or null
  int64_t y_image;
  int64_t y_row;
  int64_t y_pixel;
  int64_t y_column;
  int32_t kept_row;
  int32_t activation;  // what is left of it: the identity behind an average in registers
  float param;
  PiecewiseLinear bent;  // of an average in registers
  float factor;          // of the sums
  bool y_channels_last;
  bool y_runs;  // and written 16 bytes at a time: the filters are whole runs, and nothing is pooled
                // out of shared memory
};

// dw: filters · columns = gradient · x, summed over the windows (and the pixels in each).
struct WeightGradientProblem {
  const void* gradient;  // [windows, filters_row], padded with zeros to chunks of 16 bytes
  const uint8_t* index;  // [windows, filters_row]
  const void* x;
  float* partial;  // [splits, filters, columns]
  int64_t image;   // elements from one image of x to the next
  int32_t stride_h, stride_w, stride_c;
  int32_t height, width;  // of x
  int32_t scale_h, scale_w;
  int32_t shift_h, shift_w;
  int32_t step_h, step_w;
  int32_t taps_h, taps_w;
  int32_t chunks;   // of 16 bytes of channels; 0 where single elements are read
  int32_t columns;  // taps · channels, channels fastest; of single elements taps fastest
  int32_t filters;
  int32_t filters_row;
  Expand expand;
  float slope;
  int32_t windows;
  int32_t windows_a_split;  // a multiple of a step's
  Divisor plane;
  Divisor row;
};

}  // namespace CMF_ISA
}  // namespace cmf

// The gradient of rows of the convolution's output, from the pooled gradient: unpool_rows.h for a
// block of channels.
#pragma once

#include "common/activation.h"
#include "cpu/act_pool2d.h"
#include "cpu/unpool_rows.h"

namespace cmf {
namespace CMF_ISA {

// A vector of channels of pixel i: g + i * g_pixel; its positions or mask bits: codes +
// i * codes_pixel, of which those of the problem's channels may be read.
struct PooledBlock {
  const float* g;
  int64_t g_pixel;
  const uint8_t* codes;
  int64_t codes_pixel;
  bool summed;  // whether the sums over the pixels have been added to what `block` was given
};

// Where a block's dense rows go: [rows][W][lanes].
struct DenseRows {
  float* data;
  int64_t h_first;
  int64_t h_last;
  int64_t p_first;  // the pooled rows of the block
  int64_t p_last;
  int64_t row;  // floats from one row to the next
  int lanes;    // floats from one pixel to the next
  int vectors;  // that are filled
  int count;    // channels of the problem
};

CMF_HOST_DEVICE Mask<float> block_codes(const PooledBlock& block, int64_t pixel, int v, int count) {
  const int left = count - v * kLanes<float>;
  const uint8_t* source = block.codes + pixel * block.codes_pixel + v * kLanes<float>;
  return left >= kLanes<float> ? load_bytes<float>(source)
                               : load_bytes_partial<float>(source, left);
}

// Windows of kSize x kSize side by side: each gradient goes to its own window's elements.
template <int kSize, class Rule>
void expand_apart(const ActPool2dProblem& p, const Rule& rule, const PooledBlock& block,
                  const DenseRows& out) {
  const int64_t row = out.row;
  const int64_t covered = p.out_width * kSize;
  for (int64_t h = out.h_first; h < out.h_last; h += kSize) {
    float* target = out.data + (h - out.h_first) * row;
    const int64_t q_row = h / kSize;
    const bool inside = q_row < out.p_last;
    for (int64_t q = 0; inside && q < p.out_width; ++q) {
      const int64_t pixel = (q_row - out.p_first) * p.out_width + q;
      for (int v = 0; v < out.vectors; ++v) {
        const Vec<float> g = load<float>(block.g + pixel * block.g_pixel + v * kLanes<float>);
        const Mask<float> code =
            Rule::kCodes ? block_codes(block, pixel, v, out.count) : Mask<float>{};
        float* at = target + q * kSize * out.lanes + v * kLanes<float>;
#pragma GCC unroll 4
        for (int i = 0; i < kSize * kSize; ++i) {
          store<float>(at + i / kSize * row + i % kSize * out.lanes, rule.take(g, code, i));
        }
      }
    }
    const int64_t first = inside ? covered : 0;
    for (int64_t r = 0; r < kSize && h + r < out.h_last; ++r) {
      memset(target + r * row + first * out.lanes, 0,
             static_cast<size_t>((p.width - first) * out.lanes) * sizeof(float));
    }
  }
}

// Windows of 3 columns at stride 2: a window's last column is the next one's first. One pass along
// the windows for each row of the gradient.
template <class Rule>
void expand_threes(const ActPool2dProblem& p, const Rule& rule, const PooledBlock& block,
                   const DenseRows& out) {
  const PoolAxis vertical = vertical_axis(p);
  const int64_t pad = p.pool_pad_width;
  for (int64_t h = out.h_first; h < out.h_last; ++h) {
    float* target = out.data + (h - out.h_first) * out.row;
    const PoolCover rows = pool_cover(vertical, h);
    for (int v = 0; v < out.vectors; ++v) {
      Vec<float> carried = {};  // of the column that two windows share
      int64_t w = -pad;
      for (int64_t q = 0; q < p.out_width; ++q, w += 2) {
        Vec<float> left = carried, middle = {};
        carried = Vec<float>{};
        for (int64_t y = rows.first; y < rows.last; ++y) {
          const int position = static_cast<int>(h + vertical.pad - y * vertical.stride) * 3;
          const int64_t pixel = (y - out.p_first) * p.out_width + q;
          const Vec<float> g = load<float>(block.g + pixel * block.g_pixel + v * kLanes<float>);
          const Mask<float> code =
              Rule::kCodes ? block_codes(block, pixel, v, out.count) : Mask<float>{};
          left += rule.take(g, code, position);
          middle += rule.take(g, code, position + 1);
          carried += rule.take(g, code, position + 2);
        }
        float* at = target + w * out.lanes + v * kLanes<float>;
        if (w >= 0 && w < p.width) store<float>(at, left);
        if (w + 1 >= 0 && w + 1 < p.width) store<float>(at + out.lanes, middle);
      }
      for (; w < p.width; ++w) {
        store<float>(target + w * out.lanes + v * kLanes<float>, carried);
        carried = Vec<float>{};
      }
    }
  }
}

// Any windows: an element gathers from those that contain it.
template <class Rule>
void expand_any(const ActPool2dProblem& p, const Rule& rule, const PooledBlock& block,
                const DenseRows& out) {
  const PoolAxis vertical = vertical_axis(p), horizontal = horizontal_axis(p);
  for (int64_t h = out.h_first; h < out.h_last; ++h) {
    float* target = out.data + (h - out.h_first) * out.row;
    const PoolCover rows = pool_cover(vertical, h);
    for (int64_t w = 0; w < p.width; ++w, target += out.lanes) {
      const PoolCover columns = pool_cover(horizontal, w);
      for (int v = 0; v < out.vectors; ++v) {
        Vec<float> sum = {};
        for (int64_t y = rows.first; y < rows.last; ++y) {
          const int64_t r = h + vertical.pad - y * vertical.stride;
          for (int64_t q = columns.first; q < columns.last; ++q) {
            const int64_t s = w + horizontal.pad - q * horizontal.stride;
            const int64_t pixel = (y - out.p_first) * p.out_width + q;
            const Vec<float> g = load<float>(block.g + pixel * block.g_pixel + v * kLanes<float>);
            const Mask<float> code =
                Rule::kCodes ? block_codes(block, pixel, v, out.count) : Mask<float>{};
            sum += rule.take(g, code, static_cast<int>(r * horizontal.size + s));
          }
        }
        store<float>(target + v * kLanes<float>, sum);
      }
    }
  }
}

// Windows of 2 x 2 side by side, none of them over an edge.
inline bool pools_by_twos(const ActPool2dProblem& p) {
  return p.pool_height == 2 && p.pool_width == 2 && p.pool_stride_height == 2 &&
         p.pool_stride_width == 2 && p.pool_pad_height == 0 && p.pool_pad_width == 0 &&
         2 * p.out_height <= p.height && 2 * p.out_width <= p.width;
}

template <class Rule>
void expand_with(const ActPool2dProblem& p, const Rule& rule, const PooledBlock& block,
                 const DenseRows& out) {
  if (pools_by_twos(p)) {  // out.h_first is even, as callers cut rows
    expand_apart<2>(p, rule, block, out);
  } else if (p.pool_width == 3 && p.pool_stride_width == 2) {
    expand_threes(p, rule, block, out);
  } else {
    expand_any(p, rule, block, out);
  }
}

inline void expand(const ActPool2dProblem& p, const PooledBlock& block, const DenseRows& out) {
  if (p.pool == Pool::kMax) {
    expand_with(p, MaxRule{}, block, out);
  } else if (p.saved != Saved::kMask) {
    expand_with(p, AverageRule{}, block, out);
  } else if (static_cast<Activation>(p.activation) == Activation::kLeakyRelu) {
    expand_with(p, MaskedRule<float, true>{static_cast<float>(p.activation_param)}, block, out);
  } else {
    expand_with(p, MaskedRule<float, false>{0.0f}, block, out);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

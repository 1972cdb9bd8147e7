// The gradient of one input row from the pooled rows whose windows contain it: pool_rows.h
// transposed.
//
// An input element gathers from its windows, in row order, and is written once: no zero fill, no
// read-modify-write, and an element that nothing chose is exactly 0 whatever the gradients are.
#pragma once

#include <string.h>

#include "common/pool_expand.h"
#include "common/pool_window.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

template <class C>
struct PooledRow {
  const C* g;         // [Q] or [Q, K]: its gradient
  const char* codes;  // its positions or mask bits, or null
  int64_t position;   // in the window, of the input row's first element: r * pool_width
};

CMF_HOST_DEVICE int64_t code_at(const char* codes, int itemsize, int64_t i) {
  return itemsize == 1 ? static_cast<int64_t>(reinterpret_cast<const uint8_t*>(codes)[i])
                       : reinterpret_cast<const int32_t*>(codes)[i];
}

template <class C>
CMF_HOST_DEVICE Mask<C> load_codes(const char* codes, int itemsize, int64_t i, int lanes) {
  if (itemsize == 1) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(codes) + i;
    return lanes == kLanes<C> ? load_bytes<C>(bytes) : load_bytes_partial<C>(bytes, lanes);
  }
  Mask<C> result = Mask<C>{};
  for (int lane = 0; lane < lanes; ++lane) {
    result[lane] = static_cast<int>(code_at(codes, itemsize, i + lane));
  }
  return result;
}

// -- contiguous
// -----------------------------------------------------------------------------------------

// The vector form reads up to this many elements before and behind a pooled row; they must be
// there, and 0.
template <class C>
CMF_HOST_DEVICE int64_t unpool_margin_before(const PoolAxis& axis) {
  return (axis.size - 1) / axis.stride;
}
template <class C>
CMF_HOST_DEVICE int64_t unpool_reach_behind(const PoolAxis& axis) {
  const int64_t furthest = axis.length / axis.stride + axis.pad + 1;
  return (furthest > axis.out ? furthest : axis.out) + kLanes<C> + 1;
}

// Strides 1 and 2, codes of one byte. Column w = kStride * j + phase belongs to windows j + shift,
// j + shift - 1, ... at their positions s, s + kStride, ...
// Size 0 and padding -1: from the axis.
template <int kStride, int kSize, int kPad, class C, class Rule>
CMF_HOST_DEVICE void unpool_row_vectors(const PoolAxis& axis, const Rule& rule,
                                        const PooledRow<C>* rows, int count, C* target) {
  const int size = kSize ? kSize : static_cast<int>(axis.size);
  int start[kStride];
  int64_t shift[kStride];
  for (int phase = 0; phase < kStride; ++phase) {
    const int pad = kPad >= 0 ? kPad : static_cast<int>(axis.pad);
    start[phase] = (phase + pad) % kStride;
    shift[phase] = (phase + pad) / kStride;
  }
  for (int64_t w = 0; w < axis.length; w += kStride * kLanes<C>) {
    Vec<C> sums[kStride] = {};
    for (int k = 0; k < count; ++k) {
      const PooledRow<C> row = rows[k];
#pragma GCC unroll 2  // keeps `sums` in registers
      for (int phase = 0; phase < kStride; ++phase) {
        int64_t q = w / kStride + shift[phase];
        for (int s = start[phase]; s < size; s += kStride, --q) {
          const Vec<C> g = load<C>(row.g + q);
          const Mask<C> code = Rule::kCodes
                                   ? load_bytes<C>(reinterpret_cast<const uint8_t*>(row.codes) + q)
                                   : Mask<C>{};
          sums[phase] += rule.take(g, code, static_cast<int>(row.position) + s);
        }
      }
    }
    const int64_t left = axis.length - w;
    Vec<C> low = sums[0], high = sums[kStride - 1];
    if (kStride == 2) interleave<C>(sums[0], sums[kStride - 1], &low, &high);
    store_lanes<C>(target + w, low, left < kLanes<C> ? static_cast<int>(left) : kLanes<C>);
    const int64_t behind = left - kLanes<C>;
    if (kStride == 2 && behind > 0) {
      store_lanes<C>(target + w + kLanes<C>, high,
                     behind < kLanes<C> ? static_cast<int>(behind) : kLanes<C>);
    }
  }
}

// Every other stride, and codes of four bytes.
template <class C, class Rule>
void unpool_row_scalar(const PoolAxis& axis, const Rule& rule, const PooledRow<C>* rows, int count,
                       int itemsize, C* target) {
  memset(target, 0, static_cast<size_t>(axis.length) * sizeof(C));
  for (int k = 0; k < count; ++k) {
    const PooledRow<C> row = rows[k];
    for (int64_t q = 0; q < axis.out; ++q) {
      const int64_t code = Rule::kCodes ? code_at(row.codes, itemsize, q) : 0;
      const PoolWindow window = pool_window(axis, q);
      int64_t first = window.first, last = window.last;
      if (Rule::kOne) {
        first = code - row.position;
        last = first >= 0 && first < axis.size ? first + 1 : first;
      }
      for (int64_t s = first; s < last; ++s) {
        target[window.start + s] += rule.take(row.g[q], code, static_cast<int>(row.position + s));
      }
    }
  }
}

CMF_HOST_DEVICE bool unpools_by_vectors(const PoolAxis& axis, int itemsize) {
  return axis.stride <= 2 && itemsize <= 1;
}

template <class C, class Rule>
void unpool_row_contiguous(const PoolAxis& axis, const Rule& rule, const PooledRow<C>* rows,
                           int count, int itemsize, C* target) {
  if (!unpools_by_vectors(axis, itemsize)) {
    unpool_row_scalar(axis, rule, rows, count, itemsize, target);
  } else if (axis.stride == 2 && axis.size == 2 && axis.pad == 0) {
    unpool_row_vectors<2, 2, 0>(axis, rule, rows, count, target);
  } else if (axis.stride == 2 && axis.size == 3 && axis.pad == 0) {
    unpool_row_vectors<2, 3, 0>(axis, rule, rows, count, target);
  } else if (axis.stride == 2 && axis.size == 3) {
    unpool_row_vectors<2, 3, 1>(axis, rule, rows, count, target);
  } else if (axis.stride == 2) {
    unpool_row_vectors<2, 0, -1>(axis, rule, rows, count, target);
  } else {
    unpool_row_vectors<1, 0, -1>(axis, rule, rows, count, target);
  }
}

// -- channels_last
// --------------------------------------------------------------------------------------

template <class C, class Rule>
void unpool_row_channels_last(const PoolAxis& axis, int64_t channels, const Rule& rule,
                              const PooledRow<C>* rows, int count, int itemsize, C* target) {
  for (int64_t w = 0; w < axis.length; ++w) {
    const PoolCover cover = pool_cover(axis, w);
    for (int64_t c = 0; c < channels; c += kLanes<C>) {
      const int64_t left = channels - c;
      const int lanes = left < kLanes<C> ? static_cast<int>(left) : kLanes<C>;
      Vec<C> sum = {};
      for (int k = 0; k < count; ++k) {
        const PooledRow<C> row = rows[k];
        for (int64_t q = cover.first; q < cover.last; ++q) {
          const int64_t i = q * channels + c;
          const int64_t s = w + axis.pad - q * axis.stride;
          const Vec<C> g = load_lanes<C>(row.g + i, lanes);
          const Mask<C> code =
              Rule::kCodes ? load_codes<C>(row.codes, itemsize, i, lanes) : Mask<C>{};
          sum += rule.take(g, code, static_cast<int>(row.position + s));
        }
      }
      store_lanes<C>(target + w * channels + c, sum, lanes);
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

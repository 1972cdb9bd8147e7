// One output row of a pooling, in either memory format, from rows of any storage type.
#pragma once

#include "common/pool_reduce.h"
#include "common/pool_window.h"
#include "cpu/simd.h"
#include "cpu/simd_prefetch.h"

namespace cmf {
namespace CMF_ISA {

// Where the codes (positions or mask bits) of a row go; null data: nowhere.
struct CodeRow {
  void* data;
  int itemsize;  // 1 or 4

  CMF_HOST_DEVICE CodeRow from(int64_t i) const {
    return CodeRow{data ? static_cast<char*>(data) + i * itemsize : nullptr, itemsize};
  }
  CMF_HOST_DEVICE void store_one(int64_t i, int64_t code) const {
    if (itemsize == 1) {
      static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(code);
    } else {
      static_cast<int32_t*>(data)[i] = static_cast<int32_t>(code);
    }
  }
  template <class C>
  CMF_HOST_DEVICE void store_lanes(int64_t i, Mask<C> code, int lanes) const {
    if (itemsize == 1 && lanes == kLanes<C>) {
      store_bytes<C>(static_cast<uint8_t*>(data) + i, code);
    } else if (itemsize == 1) {
      store_bytes_partial<C>(static_cast<uint8_t*>(data) + i, code, lanes);
    } else {
      for (int lane = 0; lane < lanes; ++lane) store_one(i + lane, code[lane]);
    }
  }
};

// A window's rows of the input: rows[r] for vertical.first <= r < vertical.last.
template <class S>
struct WindowRows {
  const S* const* rows;
  PoolWindow vertical;
  // Whether kSlackLanes vectors behind every row of the input may be read, and one behind the row
  // of codes written: the values don't count, and what is written over will be written again.
  bool slack;
};
constexpr int kSlackLanes = 2;

// Up to one vector from `source`, of which `count` elements may be read.
template <class C, class S>
CMF_HOST_DEVICE Vec<C> load_up_to(const S* source, int64_t count) {
  if (count >= kLanes<C>) return load<C>(source);
  if (count <= 0) return Vec<C>{};
  return load_partial<C>(source, static_cast<int>(count));
}

// -- contiguous: a row is [W] -> [Q], vectors run along it
// ----------------------------------------------

// Outputs first .. last - 1, whose windows lie inside the input horizontally. Height and width 0:
// from the windows. `out` has room for a whole vector behind its last element.
template <template <class, class, class, bool> class Reducer, bool kTrack, int kHeight, int kWidth,
          int kStride, class C, class S>
CMF_HOST_DEVICE void pool_row_interior(const MaskRule<C>& rule, WindowRows<S> input,
                                       const PoolAxis& axis, C bias, PoolCover outputs, C* out,
                                       CodeRow codes) {
  const int width = kWidth ? kWidth : static_cast<int>(axis.size);
  const int r_first = kHeight ? 0 : static_cast<int>(input.vertical.first);
  const int r_last = kHeight ? kHeight : static_cast<int>(input.vertical.last);
  for (int64_t q = outputs.first; q < outputs.last; q += kLanes<C>) {
    const int64_t left = outputs.last - q;
    const int lanes = left < kLanes<C> && !input.slack ? static_cast<int>(left) : kLanes<C>;
    Reducer<C, Vec<C>, Mask<C>, kTrack> reducer(rule);
    bool fresh = true;
    for (int r = r_first; r < r_last; ++r) {
      const S* source = input.rows[r] + q * kStride - axis.pad;
      prefetch_behind(source, kStride * kLanes<C> * int64_t(sizeof(S)));
      for (int s = 0; s < width; s += kStride) {
        Vec<C> columns[2];
        if (kStride == 1) {
          columns[0] = load_up_to<C>(source + s, lanes);
        } else {
          // columns s, s + 2, ... and s + 1, s + 3, ...; nothing behind the last one needed is read
          const int needed =
              lanes == kLanes<C> && input.slack ? 2 * lanes : 2 * lanes - (s + 1 < width ? 0 : 1);
          const Vec<C> low = load_up_to<C>(source + s, needed);
          const Vec<C> high = load_up_to<C>(source + s + kLanes<C>, needed - kLanes<C>);
          deinterleave<C>(low, high, &columns[0], &columns[1]);
        }
        for (int k = 0; k < kStride && s + k < width; ++k) {
          const int position = r * width + s + k;
          if (fresh) {
            reducer.begin(columns[k] + bias, position);
            fresh = false;
          } else {
            reducer.add(columns[k] + bias, position);
          }
        }
      }
    }
    store<C>(out + q, reducer.value);
    if (kTrack) codes.store_lanes<C>(q, reducer.code, lanes);
  }
}

// Outputs first .. last - 1 one by one: windows over the edge, strides that no vector form covers.
template <template <class, class, class, bool> class Reducer, bool kTrack, class C, class S>
void pool_row_scalar(const MaskRule<C>& rule, WindowRows<S> input, const PoolAxis& axis, C bias,
                     int64_t first, int64_t last, C* out, CodeRow codes) {
  for (int64_t q = first; q < last; ++q) {
    const PoolWindow window = pool_window(axis, q);
    Reducer<C, C, int64_t, kTrack> reducer(rule);
    bool fresh = true;
    for (int64_t r = input.vertical.first; r < input.vertical.last; ++r) {
      for (int64_t s = window.first; s < window.last; ++s) {
        const C v = to_compute<C>(input.rows[r][window.start + s]) + bias;
        const int position = static_cast<int>(r * axis.size + s);
        if (fresh) {
          reducer.begin(v, position);
          fresh = false;
        } else {
          reducer.add(v, position);
        }
      }
    }
    out[q] = reducer.value;
    if (kTrack) codes.store_one(q, reducer.code);
  }
}

template <template <class, class, class, bool> class Reducer, bool kTrack, class C, class S>
void pool_row_contiguous(const MaskRule<C>& rule, WindowRows<S> input, const PoolAxis& axis,
                         PoolCover interior, C bias, C* out, CodeRow codes) {
  const int64_t height = input.vertical.first == 0 ? input.vertical.last : 0;
  if (axis.stride == 2 && axis.size == 2 && height == 2) {
    pool_row_interior<Reducer, kTrack, 2, 2, 2>(rule, input, axis, bias, interior, out, codes);
  } else if (axis.stride == 2 && axis.size == 3 && height == 3) {
    pool_row_interior<Reducer, kTrack, 3, 3, 2>(rule, input, axis, bias, interior, out, codes);
  } else if (axis.stride == 2) {
    pool_row_interior<Reducer, kTrack, 0, 0, 2>(rule, input, axis, bias, interior, out, codes);
  } else if (axis.stride == 1) {
    pool_row_interior<Reducer, kTrack, 0, 0, 1>(rule, input, axis, bias, interior, out, codes);
  } else {
    interior = PoolCover{0, 0};
  }
  // last: they set right what a whole vector wrote over
  pool_row_scalar<Reducer, kTrack>(rule, input, axis, bias, 0, interior.first, out, codes);
  pool_row_scalar<Reducer, kTrack>(rule, input, axis, bias, interior.last, axis.out, out, codes);
}

// -- channels_last: a row is [W, K] -> [Q, K], vectors run along the channels
// ---------------------------

// One output pixel. Height and width 0: from the windows.
template <template <class, class, class, bool> class Reducer, bool kTrack, int kHeight, int kWidth,
          class C, class S>
CMF_HOST_DEVICE void pool_pixel(const MaskRule<C>& rule, WindowRows<S> input, PoolWindow window,
                                const PoolAxis& axis, int64_t channels, const C* bias, C* out,
                                CodeRow codes) {
  const int64_t r_first = kHeight ? 0 : input.vertical.first;
  const int64_t r_last = kHeight ? kHeight : input.vertical.last;
  const int64_t s_first = kWidth ? 0 : window.first;
  const int64_t s_last = kWidth ? kWidth : window.last;
  const int width = kWidth ? kWidth : static_cast<int>(axis.size);
  for (int64_t c = 0; c < channels; c += kLanes<C>) {
    const int64_t left = channels - c;
    const int lanes = left < kLanes<C> ? static_cast<int>(left) : kLanes<C>;
    const Vec<C> b = load_up_to<C>(bias + c, lanes);
    Reducer<C, Vec<C>, Mask<C>, kTrack> reducer(rule);
    bool fresh = true;
    for (int64_t r = r_first; r < r_last; ++r) {
      const S* source = input.rows[r] + window.start * channels + c;
      for (int64_t s = s_first; s < s_last; ++s) {
        if (s < axis.stride) prefetch_behind(source + s * channels, kLanes<C> * int64_t(sizeof(S)));
        const Vec<C> v = load_up_to<C>(source + s * channels, lanes) + b;
        const int position = static_cast<int>(r) * width + static_cast<int>(s);
        if (fresh) {
          reducer.begin(v, position);
          fresh = false;
        } else {
          reducer.add(v, position);
        }
      }
    }
    store_lanes<C>(out + c, reducer.value, lanes);
    if (kTrack) codes.store_lanes<C>(c, reducer.code, lanes);
  }
}

// `bias` is [K].
template <template <class, class, class, bool> class Reducer, bool kTrack, class C, class S>
void pool_row_channels_last(const MaskRule<C>& rule, WindowRows<S> input, const PoolAxis& axis,
                            int64_t channels, const C* bias, C* out, CodeRow codes) {
  const int64_t height = input.vertical.last - input.vertical.first;
  for (int64_t q = 0; q < axis.out; ++q) {
    const PoolWindow window = pool_window(axis, q);
    const int64_t width = window.last - window.first;
    C* target = out + q * channels;
    const CodeRow code = codes.from(q * channels);
    if (height == 2 && width == 2 && axis.size == 2 && input.vertical.first == 0) {
      pool_pixel<Reducer, kTrack, 2, 2>(rule, input, window, axis, channels, bias, target, code);
    } else if (height == 3 && width == 3 && axis.size == 3 && input.vertical.first == 0) {
      pool_pixel<Reducer, kTrack, 3, 3>(rule, input, window, axis, channels, bias, target, code);
    } else {
      pool_pixel<Reducer, kTrack, 0, 0>(rule, input, window, axis, channels, bias, target, code);
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

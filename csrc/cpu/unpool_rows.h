// Adds the gradient of one pooled row to one input row: the transposes of pool_rows.h.
#pragma once

#include "common/pool_window.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

template <class C>
struct UnpoolRow {
  const C* g;           // [Q] or [Q, K]: the pooled row's gradient
  const char* codes;    // its positions or mask bits
  int itemsize;         // of a code
  int64_t position;     // of this input row's first element in the window: r * pool_width
  C* row;               // [W] or [W, K]: added to

  CMF_HOST_DEVICE int64_t code(int64_t i) const {
    return itemsize == 1 ? static_cast<int64_t>(reinterpret_cast<const uint8_t*>(codes)[i])
                         : reinterpret_cast<const int32_t*>(codes)[i];
  }
};

template <class C>
CMF_HOST_DEVICE Vec<C> load_some(const C* source, int lanes) {
  return lanes == kLanes<C> ? load<C>(source) : load_partial<C>(source, lanes);
}

template <class C>
CMF_HOST_DEVICE void store_some(C* target, Vec<C> value, int lanes) {
  if (lanes == kLanes<C>) {
    store<C>(target, value);
  } else {
    store_partial<C>(target, value, lanes);
  }
}

template <class C>
CMF_HOST_DEVICE Mask<C> load_codes(const UnpoolRow<C>& u, int64_t i, int lanes) {
  if (u.itemsize == 1) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(u.codes) + i;
    return lanes == kLanes<C> ? load_bytes<C>(bytes) : load_bytes_partial<C>(bytes, lanes);
  }
  Mask<C> result = Mask<C>{};
  for (int lane = 0; lane < lanes; ++lane) result[lane] = static_cast<int>(u.code(i + lane));
  return result;
}

// Windows of 2 at stride 2 without padding: every input column belongs to one window at most, so pairs
// of columns are written whole.
template <class C, class Pick>
CMF_HOST_DEVICE void unpool_pairs(const PoolAxis& axis, const UnpoolRow<C>& u, const Pick& pick) {
  const int64_t whole = axis.length / 2 < axis.out ? axis.length / 2 : axis.out;
  for (int64_t q = 0; q < whole; q += kLanes<C>) {
    const int64_t left = whole - q;
    const int lanes = left < kLanes<C> ? static_cast<int>(left) : kLanes<C>;
    Vec<C> low, high;
    interleave<C>(pick(q, 0, lanes), pick(q, 1, lanes), &low, &high);
    C* target = u.row + 2 * q;
    if (lanes == kLanes<C>) {
      store<C>(target, low);
      store<C>(target + kLanes<C>, high);
    } else if (2 * lanes <= kLanes<C>) {
      store_some<C>(target, low, 2 * lanes);
    } else {
      store<C>(target, low);
      store_some<C>(target + kLanes<C>, high, 2 * lanes - kLanes<C>);
    }
  }
}

CMF_HOST_DEVICE bool is_pairs(const PoolAxis& axis, int64_t channels) {
  return channels == 1 && axis.size == 2 && axis.stride == 2 && axis.pad == 0;
}

// Calls body(q, s, i, w) for every column that window q has in the input; i, w index g and row.
template <class C, class Body>
CMF_HOST_DEVICE void each_column(const PoolAxis& axis, int64_t q_first, const Body& body) {
  for (int64_t q = q_first; q < axis.out; ++q) {
    const PoolWindow window = pool_window(axis, q);
    for (int64_t s = window.first; s < window.last; ++s) body(q, s, window.start + s);
  }
}

// Maximum: the element whose position the code names takes the gradient; the others are not touched, so
// that an infinite gradient elsewhere leaves no NaN.
template <class C>
void unpool_max_row(const PoolAxis& axis, int64_t channels, const UnpoolRow<C>& u) {
  if (channels > 1) {
    each_column<C>(axis, 0, [&](int64_t q, int64_t s, int64_t w) __attribute__((always_inline)) {
      for (int64_t c = 0; c < channels; c += kLanes<C>) {
        const int64_t left = channels - c;
        const int lanes = left < kLanes<C> ? static_cast<int>(left) : kLanes<C>;
        const Mask<C> chosen =
            load_codes<C>(u, q * channels + c, lanes) == static_cast<int>(u.position + s);
        const Vec<C> g = load_some<C>(u.g + q * channels + c, lanes);
        C* target = u.row + w * channels + c;
        const Vec<C> before = load_some<C>(target, lanes);
        store_some<C>(target, chosen ? before + g : before, lanes);
      }
    });
    return;
  }
  int64_t first = 0;
  if (is_pairs(axis, channels)) {
    unpool_pairs<C>(axis, u, [&](int64_t q, int s, int lanes) __attribute__((always_inline)) {
      const Mask<C> chosen = load_codes<C>(u, q, lanes) == static_cast<int>(u.position + s);
      return chosen ? load_some<C>(u.g + q, lanes) : Vec<C>{};
    });
    first = axis.length / 2;
  }
  for (int64_t q = first; q < axis.out; ++q) {
    const int64_t s = u.code(q) - u.position;
    if (s >= 0 && s < axis.size) u.row[q * axis.stride - axis.pad + s] += u.g[q];
  }
}

// Average: every element of the window takes the same share.
template <class C>
void unpool_average_row(const PoolAxis& axis, int64_t channels, const UnpoolRow<C>& u) {
  int64_t first = 0;
  if (is_pairs(axis, channels)) {
    unpool_pairs<C>(axis, u, [&](int64_t q, int, int lanes) __attribute__((always_inline)) {
      return load_some<C>(u.g + q, lanes);
    });
    first = axis.length / 2;
  }
  each_column<C>(axis, first, [&](int64_t q, int64_t, int64_t w) __attribute__((always_inline)) {
    const C* g = u.g + q * channels;
    C* target = u.row + w * channels;
    for (int64_t c = 0; c < channels; ++c) target[c] += g[c];
  });
}

// Average of a piecewise linear activation: the share counts in full where the element's bit is set, and
// where it is not, times the slope (leaky) or not at all.
template <class C>
void unpool_masked_row(const PoolAxis& axis, int64_t channels, const UnpoolRow<C>& u, bool leaky,
                       C slope) {
  int64_t first = 0;
  if (is_pairs(axis, channels)) {
    unpool_pairs<C>(axis, u, [&](int64_t q, int s, int lanes) __attribute__((always_inline)) {
      const Mask<C> bit = load_codes<C>(u, q, lanes) & (1 << static_cast<int>(u.position + s));
      const Vec<C> g = load_some<C>(u.g + q, lanes);
      return bit != 0 ? g : (leaky ? g * slope : Vec<C>{});
    });
    first = axis.length / 2;
  }
  each_column<C>(axis, first, [&](int64_t q, int64_t s, int64_t w) __attribute__((always_inline)) {
    const int bit = 1 << static_cast<int>(u.position + s);
    for (int64_t c = 0; c < channels; c += kLanes<C>) {
      const int64_t left = channels - c;
      const int lanes = left < kLanes<C> ? static_cast<int>(left) : kLanes<C>;
      const Mask<C> set = (load_codes<C>(u, q * channels + c, lanes) & bit) != 0;
      const Vec<C> g = load_some<C>(u.g + q * channels + c, lanes);
      C* target = u.row + w * channels + c;
      const Vec<C> before = load_some<C>(target, lanes);
      const Vec<C> otherwise = leaky ? before + g * slope : before;
      store_some<C>(target, set ? before + g : otherwise, lanes);
    }
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

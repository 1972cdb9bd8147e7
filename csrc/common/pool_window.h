// Where a pooling window lies along one axis: the rules of torch.nn.functional's pooling.
#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// An argument that takes any integer: it does not say what I is.
template <class I>
struct IntegerOfType {
  typedef I type;
};
template <class I>
using IntegerOf = typename IntegerOfType<I>::type;

// I: the integer of positions.
template <class I>
struct PoolAxisOf {
  I length;  // of the pooled input
  I out;     // of the pooled output
  I size;
  I stride;
  I pad;
};
using PoolAxis = PoolAxisOf<int64_t>;

// Window `o` covers input positions start + first .. start + last - 1; what lies outside is
// padding.
template <class I>
struct PoolWindowOf {
  I start;
  I first;
  I last;
};
using PoolWindow = PoolWindowOf<int64_t>;

template <class I>
CMF_HOST_DEVICE PoolWindowOf<I> pool_window(const PoolAxisOf<I>& axis, IntegerOf<I> o) {
  PoolWindowOf<I> window;
  window.start = o * axis.stride - axis.pad;
  window.first = window.start < 0 ? -window.start : 0;
  const I room = axis.length - window.start;
  window.last = room < axis.size ? room : axis.size;
  return window;
}

// How many positions an average divides by along one axis: those inside the input, or those inside
// the padded input (a window that ceil_mode lets hang over the padding is cut there).
template <class I>
CMF_HOST_DEVICE I pool_extent(const PoolAxisOf<I>& axis, const PoolWindowOf<I>& window,
                              bool count_include_pad) {
  if (!count_include_pad) return window.last - window.first;
  const I room = axis.length + axis.pad - window.start;
  return room < axis.size ? room : axis.size;
}

// value / stride for value >= 0, without a division for the usual strides: this runs once a row.
template <class I>
CMF_HOST_DEVICE I divide_by_stride(I value, I stride) {
  if (stride == 1) return value;
  if (stride == 2) return value >> 1;
  return value / stride;
}

// The windows that contain position `i`: first .. last - 1.
template <class I>
struct PoolCoverOf {
  I first;
  I last;
};
using PoolCover = PoolCoverOf<int64_t>;

template <class I>
CMF_HOST_DEVICE PoolCoverOf<I> pool_cover(const PoolAxisOf<I>& axis, IntegerOf<I> i) {
  const I padded = i + axis.pad;
  PoolCoverOf<I> cover;
  cover.first = padded < axis.size ? 0 : divide_by_stride<I>(padded - axis.size, axis.stride) + 1;
  const I last = divide_by_stride<I>(padded, axis.stride) + 1;
  cover.last = last < axis.out ? last : axis.out;
  return cover;
}

// The outputs whose whole window lies inside the input: first .. last - 1.
CMF_HOST_DEVICE PoolCover pool_interior(const PoolAxis& axis) {
  PoolCover interior;
  interior.first = (axis.pad + axis.stride - 1) / axis.stride;
  if (interior.first > axis.out) interior.first = axis.out;
  const int64_t reach = axis.length + axis.pad - axis.size;
  int64_t last = reach < 0 ? 0 : reach / axis.stride + 1;
  if (last > axis.out) last = axis.out;
  interior.last = last < interior.first ? interior.first : last;
  return interior;
}

}  // namespace CMF_ISA
}  // namespace cmf

// Where a pooling window lies along one axis: the rules of torch.nn.functional's pooling.
#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

struct PoolAxis {
  int64_t length;  // of the pooled input
  int64_t out;     // of the pooled output
  int64_t size;
  int64_t stride;
  int64_t pad;
};

// Window `o` covers input positions start + first .. start + last - 1; what lies outside is
// padding.
struct PoolWindow {
  int64_t start;
  int64_t first;
  int64_t last;
};

CMF_HOST_DEVICE PoolWindow pool_window(const PoolAxis& axis, int64_t o) {
  PoolWindow window;
  window.start = o * axis.stride - axis.pad;
  window.first = window.start < 0 ? -window.start : 0;
  const int64_t room = axis.length - window.start;
  window.last = room < axis.size ? room : axis.size;
  return window;
}

// How many positions an average divides by along one axis: those inside the input, or those inside
// the padded input (a window that ceil_mode lets hang over the padding is cut there).
CMF_HOST_DEVICE int64_t pool_extent(const PoolAxis& axis, const PoolWindow& window,
                                    bool count_include_pad) {
  if (!count_include_pad) return window.last - window.first;
  const int64_t room = axis.length + axis.pad - window.start;
  return room < axis.size ? room : axis.size;
}

// value / stride for value >= 0, without a division for the usual strides: this runs once a row.
CMF_HOST_DEVICE int64_t divide_by_stride(int64_t value, int64_t stride) {
  if (stride == 1) return value;
  if (stride == 2) return value >> 1;
  return value / stride;
}

// The windows that contain position `i`: first .. last - 1.
struct PoolCover {
  int64_t first;
  int64_t last;
};

CMF_HOST_DEVICE PoolCover pool_cover(const PoolAxis& axis, int64_t i) {
  const int64_t padded = i + axis.pad;
  PoolCover cover;
  cover.first = padded < axis.size ? 0 : divide_by_stride(padded - axis.size, axis.stride) + 1;
  const int64_t last = divide_by_stride(padded, axis.stride) + 1;
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

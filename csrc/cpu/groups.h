// A convolution of groups is a convolution of each: some channels of x and y, side by side, and
// filters of their own.
#pragma once

#include "common/conv_act_pool2d_kernels.h"
#include "cpu/parts.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

// Why the groups are not convolutions of their own; null where they are.
inline const char* groups_refusal(const ConvActPool2dProblem& p) {
  const bool fill = least(p.in_channels, p.pool.channels) / p.groups >= kLanes<float>;
  return p.groups == 1 || fill ? nullptr
                               : "takes groups whose channels and filters fill a vector alone";
}

class Groups {
 public:
  explicit Groups(const ConvActPool2dProblem& whole) : count_(whole.groups), problem_(whole) {
    problem_.groups = 1;
    problem_.in_channels = whole.in_channels / count_;
    problem_.pool.channels = whole.pool.channels / count_;
    const ConvActPool2dProblem& p = problem_;
    filters_ = p.pool.channels;
    x_ = p.in_channels * (p.x_channels_last ? 1 : p.height * p.width);
    y_ = filters_ * (p.pool.channels_last ? 1 : p.pool.out_height * p.pool.out_width);
    w_ = filters_ * p.in_channels * p.kernel_height * p.kernel_width;
  }

  int64_t count() const { return count_; }
  // Of each group.
  const ConvActPool2dProblem& problem() const { return problem_; }

  // Group g's of a whole problem's. `prepared_size`: of a group's prepared weights.
  ConvForwardTensors tensors(const ConvForwardTensors& whole, int64_t g,
                             int64_t prepared_size) const {
    ConvForwardTensors t = whole;
    t.x = values(t.x, g * x_);
    t.w = values(t.w, g * w_);
    t.prepared = values(t.prepared, g * prepared_size);
    t.bias = values(t.bias, g * filters_);
    t.y = values(t.y, g * y_);
    t.residual = values(t.residual, g * y_);
    t.index = bytes(t.index, g * y_ * problem_.pool.index_itemsize);
    t.preactivation = values(t.preactivation, g * y_);
    return t;
  }
  ConvBackwardTensors tensors(const ConvBackwardTensors& whole, int64_t g) const {
    ConvBackwardTensors t = whole;
    t.dy = values(t.dy, g * y_);
    t.saved = values(t.saved, g * y_);
    t.index = bytes(t.index, g * y_ * problem_.pool.index_itemsize);
    t.x = values(t.x, g * x_);
    t.w = values(t.w, g * w_);
    t.bias = values(t.bias, g * filters_);
    t.dx = values(t.dx, g * x_);
    t.dw = values(t.dw, g * w_);
    t.dbias = values(t.dbias, g * filters_);
    return t;
  }
  const void* weights(const void* w, int64_t g) const { return values(w, g * w_); }

  // body(group, threads): a group a thread where that leaves none idle, or all for each in turn.
  // False where one of them gave false.
  template <class Body>
  bool each(int threads, const Body& body) const {
    if (count_ % threads == 0 || count_ >= kManyGroups * threads) {
      return in_parallel(count_, threads, [&](Range range) {
        for (int64_t g = range.first; g < range.last; ++g) {
          if (!body(g, 1)) return false;
        }
        return true;
      });
    }
    for (int64_t g = 0; g < count_; ++g) {
      if (!body(g, threads)) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kManyGroups = 4;

  template <class T>  // void or const void
  T* bytes(T* data, int64_t count) const {
    typedef typename Bytes<T>::type Byte;
    return data ? static_cast<Byte*>(data) + count : nullptr;
  }
  template <class T>
  T* values(T* data, int64_t count) const {
    return bytes(data, count * problem_.pool.itemsize);
  }

  template <class T>
  struct Bytes {
    typedef char type;
  };
  template <class T>
  struct Bytes<const T> {
    typedef const char type;
  };

  const int64_t count_;
  ConvActPool2dProblem problem_;
  // elements of a group
  int64_t filters_;
  int64_t x_;
  int64_t y_;
  int64_t w_;
};

}  // namespace CMF_ISA
}  // namespace cmf

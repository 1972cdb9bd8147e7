#include "bindings/act_pool2d_call.h"

#include <new>

#include "bindings/bind.h"

namespace cmf {

ActPool2dForward::ActPool2dForward(const ActPool2dProblem& p, uintptr_t bias, uintptr_t y,
                                   uintptr_t index, uintptr_t preactivation, int threads)
    : problem_(p), threads_(threads) {
  check_threads(threads);
  if (index != 0 && p.index_itemsize == 0) {
    throw pybind11::value_error("index must be 0: this problem has none");
  }
  if (preactivation != 0 && (p.saved != Saved::kPreactivation || index == 0)) {
    throw pybind11::value_error("preactivation must be 0 for this problem, or come with an index");
  }
  bias_ = checked_pointer("bias", bias, p.itemsize, false);
  y_ = checked_pointer("y", y, p.itemsize, p.batch > 0);
  index_ = checked_pointer("index", index, p.index_itemsize ? p.index_itemsize : 1, false);
  preactivation_ = checked_pointer("preactivation", preactivation, p.itemsize, false);
}

void ActPool2dForward::run(const void* x) const {
  if (!kernels().act_pool2d_forward(problem_, x, bias_, y_, index_, preactivation_, threads_)) {
    throw std::bad_alloc();
  }
}

ActPool2dBackward::ActPool2dBackward(const ActPool2dProblem& p, uintptr_t dy, uintptr_t saved,
                                     uintptr_t bias, uintptr_t index, uintptr_t dbias, int threads)
    : problem_(p), threads_(threads) {
  check_threads(threads);
  const bool some = p.batch > 0;
  const bool needs_saved = p.saved != Saved::kNothing && p.saved != Saved::kMask;
  const int index_size = p.index_itemsize ? p.index_itemsize : 1;
  dy_ = checked_pointer("dy", dy, p.itemsize, some);
  saved_ = checked_pointer("saved", saved, p.itemsize, some && needs_saved);
  bias_ = checked_pointer("bias", bias, p.itemsize, false);
  index_ = checked_pointer("index", index, index_size, some && p.index_itemsize != 0);
  dbias_ = checked_pointer("dbias", dbias, p.itemsize, false);
}

void ActPool2dBackward::run(void* dx) const {
  if (!kernels().act_pool2d_backward(problem_, dy_, saved_, bias_, index_, dx, dbias_, threads_)) {
    throw std::bad_alloc();
  }
}

}  // namespace cmf

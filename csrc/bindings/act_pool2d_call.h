// A call of act_pool2d whose pointers and threads have been checked against its problem.
#pragma once

#include <stdint.h>

#include "common/act_pool2d_problem.h"

namespace cmf {

class ActPool2dForward {
 public:
  ActPool2dForward(const ActPool2dProblem& problem, uintptr_t bias, uintptr_t y, uintptr_t index,
                   uintptr_t preactivation, int threads);

  // Throws std::bad_alloc where scratch memory could not be had.
  void run(const void* x) const;

 private:
  const ActPool2dProblem& problem_;
  const void* bias_;
  void* y_;
  void* index_;
  void* preactivation_;
  int threads_;
};

class ActPool2dBackward {
 public:
  ActPool2dBackward(const ActPool2dProblem& problem, uintptr_t dy, uintptr_t saved, uintptr_t bias,
                    uintptr_t index, uintptr_t dbias, int threads);

  // Throws std::bad_alloc where scratch memory could not be had. `dx` may be null.
  void run(void* dx) const;

 private:
  const ActPool2dProblem& problem_;
  const void* dy_;
  const void* saved_;
  const void* bias_;
  const void* index_;
  void* dbias_;
  int threads_;
};

}  // namespace cmf

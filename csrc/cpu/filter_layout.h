// Where the taps of filters lie, in either memory format.
#pragma once

#include "common/conv_act_pool2d_problem.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {

struct FilterLayout {
  FilterLayout(const ConvActPool2dProblem& p, bool last)
      : channels_last(last),
        area(p.kernel_height * p.kernel_width),
        filter(p.in_channels / p.groups * area),
        channel(last ? 1 : area),
        tap(last ? p.in_channels / p.groups : 1) {}

  // Filter k, of its group's channels the one number c.
  int64_t at(int64_t k, int64_t c) const { return k * filter + c * channel; }

  bool channels_last;
  int64_t area;
  // floats from one to the next
  int64_t filter;
  int64_t channel;
  int64_t tap;
};

}  // namespace CMF_ISA
}  // namespace cmf

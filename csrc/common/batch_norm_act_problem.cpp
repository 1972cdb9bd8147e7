#include "common/batch_norm_act_problem.h"

#include "common/check.h"

namespace cmf {
namespace {

constexpr int64_t kLargest = INT64_C(1) << 40;

}  // namespace

void complete_batch_norm_act_problem(BatchNormActProblem* problem) {
  BatchNormActProblem& p = *problem;
  check_range("activation", p.activation, 0, 11);
  check_range("batch", p.batch, 1, kLargest);
  check_range("channels", p.channels, 1, kLargest);
  check_range("plane", p.plane, 1, kLargest);
  // scratch memory of sums is less than x
  check_bytes("x", p.batch, p.channels, p.plane, 1, 64);
  if (p.batch * p.plane < 2) throw_invalid("a channel must have more than one value");
  // NaN fails this too
  if (!(p.eps >= 0 && p.eps <= 1e30)) throw_invalid("eps must be between 0 and 1e30");
  // where both formats are the same memory, the one with long rows
  if (p.channels == 1) {
    p.channels_last = false;
    p.plane *= p.batch;
    p.batch = 1;
  } else if (p.plane == 1) {
    p.channels_last = true;
  }
}

}  // namespace cmf

// The elementwise functions of the losses for a run of elements. Which one is the launch's: all
// threads take the same branch, once for N elements.
#pragma once

#include "common/gan_loss.h"
#include "cuda/runtime.h"

namespace cmf {
namespace CMF_ISA {

template <class C, int N>
struct LossRun {
  C x[N];
  C y[N];       // where the function has a second operand
  C weight[N];  // a third
  C grad[N];    // what the derivatives are multiplied by
  C value[N];
  C dx[N];
  C dy[N];
};

template <class F, class C, int N>
__device__ __forceinline__ void evaluate_with(C parameter, LossRun<C, N>* run) {
  CMF_UNROLL(N)
  for (int v = 0; v < N; ++v) {
    C odds = C(0);
    if constexpr (F::kLogistic) odds = exp_minus_magnitude(F::logit(run->x[v], run->y[v]));
    const GanLossResult<C> result =
        F::evaluate(run->x[v], run->y[v], run->weight[v], odds, parameter, run->grad[v]);
    run->value[v] = result.value;
    if constexpr (F::kAddsLogarithm) run->value[v] += log_one_plus(odds);
    if constexpr (F::kHasDomain) {
      if (result.bad) run->value[v] = static_cast<C>(__builtin_nan(""));
    }
    run->dx[v] = result.dx;
    run->dy[v] = result.dy;
  }
}

template <class C, int N>
__device__ __forceinline__ void evaluate(GanLossFunction function, C parameter,
                                         LossRun<C, N>* run) {
  switch (function) {
    case GanLossFunction::kLogLossLogits:
      return evaluate_with<LogLossLogits>(parameter, run);
    case GanLossFunction::kLogLossProbabilities:
      return evaluate_with<LogLossProbabilities>(parameter, run);
    case GanLossFunction::kLeastSquares:
      return evaluate_with<LeastSquares>(parameter, run);
    case GanLossFunction::kHinge:
      return evaluate_with<Hinge>(parameter, run);
    case GanLossFunction::kLinear:
      return evaluate_with<Linear>(parameter, run);
    case GanLossFunction::kRelativistic:
      return evaluate_with<Relativistic>(parameter, run);
    case GanLossFunction::kLogLossLogitsTarget:
      return evaluate_with<LogLossLogitsTarget<false>>(parameter, run);
    case GanLossFunction::kLogLossProbabilitiesTarget:
      return evaluate_with<LogLossProbabilitiesTarget<false>>(parameter, run);
    case GanLossFunction::kLogLossLogitsTargetWeight:
      return evaluate_with<LogLossLogitsTarget<true>>(parameter, run);
    case GanLossFunction::kLogLossProbabilitiesTargetWeight:
      return evaluate_with<LogLossProbabilitiesTarget<true>>(parameter, run);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/winograd_turned_weights.h"

#include "common/huge_pages.h"
#include "cpu/winograd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

// U of every set of phases, one after another. body(plan, floats before the set): false is an end.
template <class W, class Body>
bool each_phase_set(const ConvActPool2dProblem& p, const Body& body) {
  PhaseSet sets[kPhaseSets];
  const int count = choose_phase_sets(p, W::kOutputs, W::kTaps, sets);
  int64_t floats = 0;
  for (int i = 0; i < count; ++i) {
    GradientPlan plan;
    if (!plan.prepare(p, sets[i], W::kOutputs, W::kTaps, false, false) || !body(plan, floats)) {
      return false;
    }
    floats += plan.groups() * turned_group_floats<W>(plan);
  }
  return true;
}

template <class W>
int64_t size(const ConvActPool2dProblem& p) {
  int64_t floats = 0;
  const bool success = each_phase_set<W>(p, [&](const GradientPlan& plan, int64_t before) {
    floats = before + plan.groups() * turned_group_floats<W>(plan);
    return true;
  });
  return success ? floats : 0;
}

template <class W>
bool prepare(const ConvActPool2dProblem& p, const float* w, float* prepared, int threads) {
  // read from one end to the other at every call: by large pages where it can be
  advise_huge_pages(prepared, size<W>(p) * int64_t(sizeof(float)));
  return each_phase_set<W>(p, [&](const GradientPlan& plan, int64_t before) {
    return turn_weights<W>(p, plan, FilterLayout(p, false), w, prepared + before, threads);
  });
}

template <class Body>
auto with_gradients(const ConvActPool2dProblem& p, const Body& body) {
  return with_winograd(p, winograd_gradient_outputs(p), body);
}

}  // namespace

const char* winograd_transposed_refusal(const ConvActPool2dProblem& p) {
  if (p.groups != 1) return "takes one group alone";
  // its bias and activation follow the sums of all parts
  if (winograd_parts(p).count() > 1) return "takes filters of at most 5 taps a stride";
  return winograd_refusal(p, true);
}

int64_t winograd_transposed_size(const ConvActPool2dProblem& p) {
  return with_gradients(p, [&](auto w) { return size<decltype(w)>(p); });
}

bool winograd_prepare_transposed(const ConvActPool2dProblem& p, const void* w, void* prepared,
                                 int threads) {
  return with_gradients(p, [&](auto f) {
    return prepare<decltype(f)>(p, static_cast<const float*>(w), static_cast<float*>(prepared),
                                threads);
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

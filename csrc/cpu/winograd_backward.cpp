// dx, dw and dbias of y = pool(act(x * w + bias)) from the pooled gradient.
//
// A super-block of tiles at a time: the tiles of dz, expanded from the pooled gradient band by
// band, and those of x are transformed; then both products run over them. dz never exists as a
// whole. What is summed in which order depends on the problem alone.
//
// Of few weights each thread has super-blocks of its own, and a partial dw of each: nothing that
// one core has written is read by another. (Where two cores share no cache, as on processors of
// several dies, such lines take six times as long: measured, 320 ns for 50; the gradients of 64 to
// 128 channels took 1.4 times as long.) Many weights' sums would not stay in a core's cache: there
// all threads transform a super-block, and share out its products by channels.
#include <string.h>

#include "cpu/groups.h"
#include "cpu/own_items.h"
#include "cpu/partial_biases.h"
#include "cpu/winograd.h"
#include "cpu/winograd_gradient_worker.h"
#include "cpu/winograd_merged_gradient.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kOwnSumsBytes = 4 << 20;  // of dw in the transform domain, at most
constexpr int64_t kLeastPartials = 8;
constexpr int64_t kMostPartials = 32;
// A parallel region with its barriers costs as much as this many multiply-adds.
constexpr int64_t kProductsPerThread = 1 << 20;

int useful_threads(const GradientPlan& plan, int64_t frequencies, int64_t tiles, int threads) {
  const int64_t positions = tiles * frequencies * kLanes<float>;
  const int64_t most =
      positions * plan.k_blocks() * plan.vectors() * kLanes<float> / kProductsPerThread;
  return most < threads ? static_cast<int>(most > 1 ? most : 1) : threads;
}

// dw and dbias of a few super-blocks each, which are added up in order.
struct PartialGradients {
  int64_t count = 0;  // 0: there are none
  int64_t size;       // of dw
  Scratch<float> dw;
  Scratch<double> bias;  // [partial][K]

  bool allocate(const ConvActPool2dProblem& p, const ConvBackwardTensors& t) {
    size = p.pool.channels * p.in_channels * p.kernel_height * p.kernel_width;
    return (!t.dw || dw.allocate(count * size)) &&
           (!t.dbias || bias.allocate(count * p.pool.channels));
  }

  void add(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) const {
    if (t.dbias) {
      add_partial_biases(bias.data, count, p.pool.channels, static_cast<float*>(t.dbias));
    }
    if (!t.dw) return;
    constexpr int64_t kSome = 256;
    in_parallel(divide_up(size, kSome), size * count < kProductsPerThread ? 1 : threads,
                [&](Range parts) {
                  for (int64_t part = parts.first; part < parts.last; ++part) {
                    const int64_t first = part * kSome;
                    const int64_t some = least(size - first, kSome);
                    double sums[kSome] = {};
                    for (int64_t m = 0; m < count; ++m) {
                      const float* source = dw.data + m * size + first;
                      for (int64_t i = 0; i < some; ++i) sums[i] += static_cast<double>(source[i]);
                    }
                    float* target = static_cast<float*>(t.dw) + first;
                    for (int64_t i = 0; i < some; ++i) target[i] = static_cast<float>(sums[i]);
                  }
                  return true;
                });
  }
};

// One set of phases, each thread by itself.
template <class W>
bool backward_apart(const ConvActPool2dProblem& p, const ConvBackwardTensors& t,
                    const GradientPlan& plan, const float* turned, const PartialGradients& partials,
                    int threads, bool* finite) {
  threads = useful_threads(plan, W::kFrequencies, plan.most_tiles() * plan.supers(), threads);
  threads = static_cast<int>(least(threads, partials.count));
  Scratch<float> own_turned;
  if (t.dx && !turned) {
    if (!own_turned.allocate(plan.groups() * turned_group_floats<W>(plan)) ||
        !turn_weights<W>(p, plan, FilterLayout(p, t.w_channels_last),
                         static_cast<const float*>(t.w), own_turned.data, threads)) {
      return false;
    }
    turned = own_turned.data;
  }
  OwnItems items;
  if (!items.prepare(partials.count, threads)) return false;
  return in_parallel(threads, threads, [&](Range) {
    GradientMemory memory;
    Scratch<float> later;  // dw of super-blocks behind the first of a partial gradient
    if (!memory.allocate<W>(t, plan, false) || (t.dw && !later.allocate(partials.size))) {
      return false;
    }
    // the taps of other sets stay 0: those sets' sums are added to as well
    if (t.dw) memset(later.data, 0, static_cast<size_t>(partials.size) * sizeof(float));
    GradientWorker<W> worker(p, t, plan, memory, false, turned, 1);
    if (!worker.prepare()) return false;
    bool all_finite = true;
    for (int64_t m; (m = items.take()) >= 0;) {
      const Range supers =
          part_of(plan.supers(), static_cast<int>(m), static_cast<int>(partials.count));
      for (int64_t super = supers.first; super < supers.last; ++super) {
        worker.begin(super);
        for (int64_t item = 0; item < worker.transforms(super); ++item) {
          worker.transform(super, item);
        }
        for (int64_t k = 0; t.dbias && k < plan.filters(); ++k) {
          double* sum = partials.bias.data + m * plan.filters() + k;
          if (super == supers.first) *sum = 0;
          worker.add_bias(super, k, sum);
        }
        for (int64_t group = 0; t.dx && group < plan.groups(); ++group) {
          worker.input_gradient(super, group, 0, 1);
        }
        if (!t.dw) continue;
        float* sums = partials.dw.data + m * partials.size;
        float* dw = super == supers.first ? sums : later.data;
        for (int64_t item = 0; item < worker.weight_items(); ++item) {
          all_finite &= worker.weight_gradient(super, item, dw);
        }
        if (dw == sums) continue;
        for (int64_t i = 0; i < partials.size; ++i) sums[i] += dw[i];
      }
    }
    if (!all_finite) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      *finite = false;
    }
    fence_streams();
    return true;
  });
}

// One set of phases, all threads together.
template <class W>
bool backward_together(const ConvActPool2dProblem& p, const ConvBackwardTensors& t,
                       const GradientPlan& plan, const float* turned, int threads, bool* finite) {
  threads = useful_threads(plan, W::kFrequencies, plan.most_tiles(), threads);
  const bool several = plan.supers() > 1;
  GradientMemory shared;
  if (!shared.allocate<W>(t, plan, several)) return false;
  for (int64_t k = 0; t.dbias && k < plan.filters(); ++k) shared.bias[k] = 0;
  // a few groups of channels are shared by several threads, each with tiles of its own
  const int64_t groups = plan.groups();
  const int64_t shares = groups < threads ? (threads + groups - 1) / groups : 1;
  bool success = true;
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    GradientWorker<W> worker(p, t, plan, shared, several, turned, threads);
    if (!worker.prepare()) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      success = false;
    }
#if defined(_OPENMP)
#pragma omp barrier
#endif
    const bool ready = success;
    bool all_finite = true;
    // products of super-block i beside the transforms of i + 1
    for (int64_t i = -1; ready && i < plan.supers(); ++i) {
      const bool more = i + 1 < plan.supers();
      if (more) worker.begin(i + 1);
      const int64_t biases = t.dbias && i >= 0 ? plan.filters() : 0;
#if defined(_OPENMP)
#pragma omp for schedule(static) nowait
#endif
      for (int64_t k = 0; k < biases; ++k) {
        worker.add_bias(i, k, shared.bias + k);
        if (!more) static_cast<float*>(t.dbias)[k] = static_cast<float>(shared.bias[k]);
      }
      const int64_t inputs = t.dx && i >= 0 ? groups * shares : 0;
      const int64_t weights = t.dw && i >= 0 ? worker.weight_items() : 0;
      const int64_t transforms = more ? worker.transforms(i + 1) : 0;
#if defined(_OPENMP)
#pragma omp for schedule(dynamic)
#endif
      for (int64_t item = 0; item < inputs + weights + transforms; ++item) {
        if (item < inputs) {
          worker.input_gradient(i, item / shares, item % shares, shares);
        } else if (item < inputs + weights) {
          all_finite &= worker.weight_gradient(i, item - inputs, static_cast<float*>(t.dw));
        } else {
          worker.transform(i + 1, item - inputs - weights);
        }
      }
    }
    if (ready && t.dw) {
      const int64_t finishing_items = worker.finishing_items();
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
      for (int64_t item = 0; item < finishing_items; ++item) {
        all_finite &= worker.finish_weights(item);
      }
    }
    if (!all_finite) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      *finite = false;
    }
    fence_streams();
  }
  return success;
}

// Whether dw in the transform domain stays in a core's cache beside the tiles.
bool sums_are_few(const ConvActPool2dProblem& p, int64_t frequencies) {
  const int64_t columns = round_up(p.in_channels, kLanes<float>) * p.stride_height * p.stride_width;
  return frequencies * columns * round_up(p.pool.channels, kLanes<float>) *
             int64_t(sizeof(float)) <=
         kOwnSumsBytes;
}

template <class W>
bool backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& tensors, int threads) {
  PhaseSet sets[kPhaseSets];
  const int count = choose_phase_sets(p, W::kOutputs, W::kTaps, sets);
  ConvBackwardTensors t = tensors;
  GradientPlan plans[2][kPhaseSets];  // together, apart
  PartialGradients partials;
  const auto prepare = [&](bool apart) {
    for (int i = 0; i < count; ++i) {
      if (!plans[apart][i].prepare(p, sets[i], W::kOutputs, W::kTaps, t.dw != nullptr, apart)) {
        return false;
      }
    }
    return true;
  };
  if (sums_are_few(p, W::kFrequencies)) {
    if (!prepare(true)) return false;
    partials.count = kMostPartials;
    for (int i = 0; i < count; ++i) partials.count = least(partials.count, plans[1][i].supers());
    if (partials.count < kLeastPartials) partials.count = 0;
  }
  const bool apart = partials.count > 0;
  if (apart ? !partials.allocate(p, t) : !prepare(false)) return false;
  const float* turned = t.transposed ? static_cast<const float*>(t.transposed->prepared) : nullptr;
  bool finite = true;
  for (int i = 0; i < count; ++i) {
    const GradientPlan& plan = plans[apart][i];
    if (!(apart ? backward_apart<W>(p, t, plan, turned, partials, threads, &finite)
                : backward_together<W>(p, t, plan, turned, threads, &finite))) {
      return false;
    }
    if (turned) turned += plan.groups() * turned_group_floats<W>(plan);
    t.dbias = nullptr;  // the first set gave it
    if (!t.dx && !t.dw) break;
  }
  if (apart) partials.add(p, tensors, threads);
  if (t.dw_spoilt) *t.dw_spoilt = !finite;
  return true;
}

bool backward_of_group(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  if (t.dw && !t.dx && winograd_merges_phases(p)) return winograd_merged_gradient(p, t, threads);
  const int outputs = winograd_gradient_outputs(p);
  return with_winograd(p, outputs, [&](auto w) { return backward<decltype(w)>(p, t, threads); });
}

}  // namespace

bool winograd_backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  const Groups groups(p);
  if (groups.count() == 1) return backward_of_group(p, t, threads);
  bool spoilt = false;
  const bool success = groups.each(threads, [&](int64_t g, int threads_of_group) {
    ConvBackwardTensors of_group = groups.tensors(t, g);
    bool some = false;
    of_group.dw_spoilt = &some;
    if (!backward_of_group(groups.problem(), of_group, threads_of_group)) return false;
    if (some) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      spoilt = true;
    }
    return true;
  });
  if (t.dw_spoilt) *t.dw_spoilt = spoilt;
  return success;
}

}  // namespace CMF_ISA
}  // namespace cmf

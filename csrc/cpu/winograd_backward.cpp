// dx, dw and dbias of y = pool(act(x * w + bias)) from the pooled gradient.
//
// A super-block of tiles at a time: the tiles of dz, expanded from the pooled gradient band by
// band, and those of x are transformed; then both products run over them. dz never exists as a
// whole. What is summed in which order depends on the problem alone.
#include <string.h>

#include "common/huge_pages.h"
#include "cpu/integers.h"
#include "cpu/scratch.h"
#include "cpu/winograd.h"
#include "cpu/winograd_gradient.h"
#include "cpu/winograd_gradient_source.h"
#include "cpu/winograd_input_gradient.h"
#include "cpu/winograd_matrices.h"
#include "cpu/winograd_merged_gradient.h"
#include "cpu/winograd_turned_weights.h"
#include "cpu/winograd_weight_gradient.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

// The lines that the next tile will be written to: too many streams for the hardware to see.
template <class W>
CMF_HOST_DEVICE void prefetch_next_tile(float* target, int64_t step) {
  CMF_UNROLL
  for (int f = 0; f < W::kFrequencies; ++f) __builtin_prefetch(target + f * step + kV, 1);
}

// What the threads share.
struct Shared {
  // Of two super-blocks at a time: while one is multiplied, the next is transformed.
  struct Side {
    float* v = nullptr;           // [chunk][frequency][k block][tile][lane]
    float* x = nullptr;           // [chunk][frequency][vector][tile][lane]
    float* bias_parts = nullptr;  // [run][K]
  };
  Side sides[2];
  float* sums = nullptr;   // [frequency][pair of k blocks][vector] blocks; several super-blocks
  double* bias = nullptr;  // [K]
  // All of it in one: what is freed piece by piece the C library gives back to the system, and each
  // call would pay for its pages anew.
  Scratch<float> memory;
};

template <class W>
class Worker {
 public:
  static constexpr int kM = W::kOutputs;
  static constexpr int kF = W::kFrequencies;

  Worker(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
         const GradientPlan& plan, Shared& shared, int threads)
      : p_(problem),
        t_(tensors),
        plan_(plan),
        shared_(shared),
        filters_(problem, tensors.w_channels_last),
        frame_(problem, tensors, plan.frame_rows(plan.most_run_strips()), plan.frame_columns(),
               plan.horizontal().last - plan.frame_columns() + 1, plan.frame_lanes()),
        input_(problem, plan, static_cast<const float*>(tensors.x)),
        gradient_(problem, tensors, plan) {
    // vectors of x that share what is read of V, where enough is left for every thread
    while (together_ > 1 && weight_items() < 2 * threads) together_ /= 2;
  }

  bool prepare() {
    const int64_t area = p_.kernel_height * p_.kernel_width;
    const bool dw = t_.dw != nullptr;
    return blocks_[0].prepare(plan_) && blocks_[1].prepare(plan_) && frame_.prepare() &&
           frame_sums_.allocate(plan_.frame_lanes()) && (!t_.dx || gradient_.prepare()) &&
           (!dw || (input_.prepare(kM) && taps_.allocate(area * kV * kV))) &&
           (!dw || plan_.supers() > 1 || sums_.allocate(kF * kSumBlock * together_));
  }

  // Lists super-block `super`; that before it stays.
  void begin(int64_t super) { blocks_[super % 2].list(plan_, super); }

  // Items of the first phase: a run of tiles, a few channels.
  int64_t gradient_parts() const { return divide_up(plan_.k_blocks() * kV, plan_.frame_lanes()); }
  int64_t input_parts() const {
    return t_.dw ? divide_up(plan_.vectors(), int64_t(kInputVectors)) : 0;
  }
  int64_t transforms(int64_t super) const {
    return blocks_[super % 2].runs() * (gradient_parts() + input_parts());
  }
  void transform(int64_t super, int64_t item) {
    const int64_t parts = gradient_parts() + input_parts();
    const int64_t part = item % parts;
    if (part < gradient_parts()) {
      transform_gradient(super, item / parts, part);
    } else {
      transform_input(super, item / parts, (part - gradient_parts()) * kInputVectors);
    }
  }

  void add_bias(int64_t super, int64_t k) {
    const float* parts = shared_.sides[super % 2].bias_parts;
    double sum = super == 0 ? 0.0 : shared_.bias[k];
    for (int64_t run = 0; run < blocks_[super % 2].runs(); ++run) {
      sum += static_cast<double>(parts[run * plan_.filters() + k]);
    }
    shared_.bias[k] = sum;
    if (super + 1 == plan_.supers()) static_cast<float*>(t_.dbias)[k] = static_cast<float>(sum);
  }

  // Chunks of tiles, part `share` of `shares`, by one group of channels.
  void input_gradient(int64_t super, int64_t group, int64_t share, int64_t shares) {
    const GradientBlock& block = blocks_[super % 2];
    const int64_t count = block.chunks().count;
    gradient_.run(block, shared_.sides[super % 2].v, group,
                  static_cast<int>(count * share / shares),
                  static_cast<int>(count * (share + 1) / shares));
  }

  // One super-block: a block of sums at all frequencies, and its dw. Several: all vectors of x at
  // one frequency.
  int64_t k_pairs() const { return divide_up(plan_.k_blocks(), int64_t(kGradientVectors)); }
  int64_t weight_items() const {
    return k_pairs() * (plan_.supers() > 1 ? int64_t(kF) : divide_up(plan_.vectors(), together_));
  }
  bool weight_gradient(int64_t super, int64_t item) {
    const TransformedTiles tiles = {shared_.sides[super % 2].v, shared_.sides[super % 2].x};
    const TileChunks chunks = blocks_[super % 2].chunks();
    if (plan_.supers() > 1) {
      const int f = static_cast<int>(item / k_pairs());
      const int64_t pair = item % k_pairs();
      for (int64_t first = 0; first < plan_.vectors(); first += kSummedVectors) {
        multiply_weight_blocks<W>(
            plan_, tiles, chunks, f, first, least(first + kSummedVectors, plan_.vectors()),
            pair * kGradientVectors, NextProducts::kColumns, super > 0, sums_at(f, pair, first));
      }
      return true;
    }
    const int64_t parts = divide_up(plan_.vectors(), together_);
    const int64_t first = item % parts * together_;
    const int64_t last = least(first + together_, plan_.vectors());
    const int64_t k = item / parts * kGradientVectors;
    const int64_t step = (last - first) * kSumBlock;
    for (int f = 0; f < kF; ++f) {
      multiply_weight_blocks<W>(plan_, tiles, chunks, f, first, last, k, NextProducts::kFrequency,
                                false, sums_.data + f * step);
    }
    bool finite = true;
    for (int64_t vector = first; vector < last; ++vector) {
      finite &= finish_weight_block<W>(p_, plan_, filters_, vector, k,
                                       sums_.data + (vector - first) * kSumBlock, step, taps_.data,
                                       static_cast<float*>(t_.dw));
    }
    return finite;
  }

  // Several super-blocks: the sums' way back.
  int64_t finishing_items() const { return plan_.supers() > 1 ? k_pairs() * plan_.vectors() : 0; }
  bool finish_weights(int64_t item) {
    const int64_t vector = item % plan_.vectors();
    const int64_t pair = item / plan_.vectors();
    return finish_weight_block<W>(p_, plan_, filters_, vector, pair * kGradientVectors,
                                  sums_at(0, pair, vector),
                                  sums_at(1, pair, vector) - sums_at(0, pair, vector), taps_.data,
                                  static_cast<float*>(t_.dw));
  }

 private:
  float* sums_at(int64_t f, int64_t pair, int64_t vector) const {
    return shared_.sums + ((f * k_pairs() + pair) * plan_.vectors() + vector) * kSumBlock;
  }

  void transform_gradient(int64_t super, int64_t index, int64_t part) {
    const GradientBlock& block = blocks_[super % 2];
    const Shared::Side& side = shared_.sides[super % 2];
    const TileRun& run = block.run(index);
    const int64_t k_first = part * plan_.frame_lanes();
    const int64_t left = plan_.filters() - k_first;
    const int count = left < plan_.frame_lanes() ? static_cast<int>(left) : plan_.frame_lanes();
    const int64_t end = plan_.vertical().last - run.strip_first * kM + 1;
    const int64_t rows = plan_.frame_rows(run.strip_last - run.strip_first);
    frame_.fill(run.n, end - rows, rows, k_first, count);
    if (t_.dbias) {
      // each row of z counts with the tiles that begin at it, the first ones with the last tiles
      const bool last = run.strip_last == plan_.vertical().tiles;
      frame_.sum_rows(last ? end - rows : end - rows + W::kTaps - 1, end, frame_sums_.data);
      memcpy(side.bias_parts + index * plan_.filters() + k_first, frame_sums_.data,
             static_cast<size_t>(count) * sizeof(float));
    }
    if (!t_.dx && !t_.dw) return;
    const PanelLayout layout = {kF, plan_.k_blocks()};
    const int64_t first = k_first / kV;
    const int64_t blocks = divide_up(count, kV);
    for (int64_t k = 0; k < blocks; ++k) {
      for_each_tile(block, run, [&](const ChunkCursor& cursor, int64_t strip, int64_t column) {
        const int64_t step = layout.step(cursor.size());
        float* target = cursor.at(side.v, layout, first + k);
        prefetch_next_tile<W>(target, step);
        transform_gradient_tile<W>(frame_, plan_, strip, column, static_cast<int>(k * kV), target,
                                   step);
      });
    }
  }

  void transform_input(int64_t super, int64_t index, int64_t first) {
    const GradientBlock& block = blocks_[super % 2];
    const Shared::Side& side = shared_.sides[super % 2];
    const TileRun& run = block.run(index);
    const PanelLayout layout = {kF, plan_.vectors()};
    const int64_t left = plan_.vectors() - first;
    const int64_t last = first + (left < kInputVectors ? left : kInputVectors);
    // a copied frame holds one vector
    const int64_t together = p_.x_channels_last ? last - first : 1;
    for (int64_t begin = first; begin < last; begin += together) {
      input_.fill(run, plan_.vector(begin), kM);
      for_each_tile(block, run, [&](const ChunkCursor& cursor, int64_t strip, int64_t column) {
        const int64_t step = layout.step(cursor.size());
        for (int64_t v = begin; v < begin + together; ++v) {
          float* target = cursor.at(side.x, layout, v);
          prefetch_next_tile<W>(target, step);
          input_.template transform<W>(run.n, strip, column, plan_.vector(v), target, step);
        }
      });
    }
  }

  template <class Body>
  void for_each_tile(const GradientBlock& block, const TileRun& run, const Body& body) {
    ChunkCursor cursor(block.chunks(), run.tile);
    for (int64_t strip = run.strip_first; strip < run.strip_last; ++strip) {
      for (int64_t column = 0; column < plan_.horizontal().tiles; ++column) {
        body(cursor, strip, column);
        cursor.next();
      }
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const GradientPlan& plan_;
  Shared& shared_;
  const FilterLayout filters_;
  int64_t together_ = 4;
  GradientBlock blocks_[2];  // of even and odd super-blocks
  GradientFrame frame_;
  InputTiles input_;
  InputGradient<W> gradient_;
  Scratch<float> frame_sums_;
  Scratch<float> sums_;  // [frequency][together] blocks, where there is one super-block
  Scratch<float> taps_;
};

template <class W>
bool allocate(const ConvBackwardTensors& t, const GradientPlan& plan, Shared* shared) {
  const bool transforms = t.dx || t.dw;
  const int64_t pairs = divide_up(plan.k_blocks(), int64_t(kGradientVectors));
  const auto floats = [&](int64_t panels) {
    return PanelLayout{W::kFrequencies, panels}.floats(plan.most_tiles(), plan.most_chunks());
  };
  const int64_t v = transforms ? floats(plan.k_blocks()) : 0;
  const int64_t x = t.dw ? floats(plan.vectors()) : 0;
  const int64_t sums =
      t.dw && plan.supers() > 1 ? W::kFrequencies * pairs * plan.vectors() * kSumBlock : 0;
  const int64_t bias = t.dbias ? plan.k_blocks() * kV : 0;
  const int64_t side = v + x + plan.most_runs() * bias;
  const int sides = plan.supers() > 1 ? 2 : 1;
  const int64_t count = sides * side + sums + 2 * bias;
  if (!shared->memory.allocate(count)) return false;
  advise_huge_pages(shared->memory.data, count * int64_t(sizeof(float)));
  for (int i = 0; i < sides; ++i) {
    shared->sides[i].v = shared->memory.data + i * side;
    shared->sides[i].x = shared->sides[i].v + v;
    shared->sides[i].bias_parts = shared->sides[i].x + x;
  }
  shared->sums = shared->memory.data + sides * side;
  shared->bias = reinterpret_cast<double*>(shared->sums + sums);
  return true;
}

// A parallel region with its barriers costs as much as this many multiply-adds.
constexpr int64_t kProductsPerThread = 1 << 20;

int useful_threads(const GradientPlan& plan, int64_t frequencies, int threads) {
  const int64_t tiles = plan.most_tiles() * frequencies * kV;
  const int64_t most = tiles * plan.k_blocks() * plan.vectors() * kV / kProductsPerThread;
  return most < threads ? static_cast<int>(most > 1 ? most : 1) : threads;
}

template <class W>
bool backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, const PhaseSet& set,
              int threads, int64_t* turned_floats) {
  GradientPlan plan;
  if (!plan.prepare(p, set, W::kOutputs, W::kTaps, t.dw != nullptr)) return false;
  *turned_floats = plan.groups() * turned_group_floats<W>(plan);
  threads = useful_threads(plan, W::kFrequencies, threads);
  Shared shared;
  if (!allocate<W>(t, plan, &shared)) return false;
  // a few groups of channels are shared by several threads, each with tiles of its own
  const int64_t groups = plan.groups();
  const int64_t shares = groups < threads ? (threads + groups - 1) / groups : 1;
  bool success = true;
  bool finite = true;
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    Worker<W> worker(p, t, plan, shared, threads);
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
      for (int64_t k = 0; k < biases; ++k) worker.add_bias(i, k);
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
          if (!worker.weight_gradient(i, item - inputs)) all_finite = false;
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
        if (!worker.finish_weights(item)) all_finite = false;
      }
    }
    if (!all_finite) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      finite = false;
    }
    fence_streams();
  }
  if (t.dw_spoilt) *t.dw_spoilt |= !finite;
  return success;
}

template <class W>
bool backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& tensors, int threads) {
  PhaseSet sets[kPhaseSets];
  const int count = choose_phase_sets(p, W::kOutputs, W::kTaps, sets);
  ConvBackwardTensors t = tensors;
  ConvTransposed transposed = {};
  if (t.transposed) transposed = *t.transposed, t.transposed = &transposed;
  if (t.dw_spoilt) *t.dw_spoilt = false;
  for (int i = 0; i < count; ++i) {
    int64_t turned_floats = 0;
    if (!backward<W>(p, t, sets[i], threads, &turned_floats)) return false;
    if (transposed.prepared) {
      transposed.prepared = static_cast<const float*>(transposed.prepared) + turned_floats;
    }
    t.dbias = nullptr;  // the first set gave it
    if (!t.dx && !t.dw) break;
  }
  return true;
}

}  // namespace

bool winograd_backward(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  if (t.dw && !t.dx && winograd_merges_phases(p)) return winograd_merged_gradient(p, t, threads);
  const int outputs = winograd_gradient_outputs(p);
  return with_winograd(p, outputs, [&](auto w) { return backward<decltype(w)>(p, t, threads); });
}

}  // namespace CMF_ISA
}  // namespace cmf

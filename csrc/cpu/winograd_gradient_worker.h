// What the threads of a Winograd backward do with a super-block of tiles: transform it, and
// multiply what was transformed.
#pragma once

#include <string.h>

#include "common/huge_pages.h"
#include "cpu/integers.h"
#include "cpu/scratch.h"
#include "cpu/winograd_gradient.h"
#include "cpu/winograd_gradient_source.h"
#include "cpu/winograd_input_gradient.h"
#include "cpu/winograd_weight_gradient.h"

namespace cmf {
namespace CMF_ISA {

// The lines that the next tile will be written to: too many streams for the hardware to see.
template <class W>
CMF_HOST_DEVICE void prefetch_next_tile(float* target, int64_t step) {
  CMF_UNROLL
  for (int f = 0; f < W::kFrequencies; ++f) {
    __builtin_prefetch(target + f * step + kLanes<float>, 1);
  }
}

// What is transformed, and sums of it: the threads' together, or one thread's.
struct GradientMemory {
  // Of two super-blocks at a time: while one is multiplied, the next is transformed.
  struct Side {
    float* v = nullptr;           // [chunk][frequency][k block][tile][lane]
    float* x = nullptr;           // [chunk][frequency][vector][tile][lane]
    float* bias_parts = nullptr;  // [run][K]
  };
  Side sides[2];
  float* sums = nullptr;   // [frequency][pair of k blocks][vector] blocks, where they are kept
  double* bias = nullptr;  // [K]
  // All of it in one: what is freed piece by piece the C library gives back to the system, and each
  // call would pay for its pages anew.
  Scratch<float> memory;

  // `keeps_sums`: of dw, from one super-block to the next, whose sides are two then. False where
  // memory could not be had.
  template <class W>
  bool allocate(const ConvBackwardTensors& t, const GradientPlan& plan, bool keeps_sums);
};

template <class W>
bool GradientMemory::allocate(const ConvBackwardTensors& t, const GradientPlan& plan,
                              bool keeps_sums) {
  constexpr int kV = kLanes<float>;
  const bool transforms = t.dx || t.dw;
  const int64_t pairs = divide_up(plan.k_blocks(), int64_t(kGradientVectors));
  const auto floats = [&](int64_t panels) {
    return PanelLayout{W::kFrequencies, panels}.floats(plan.most_tiles(), plan.most_chunks());
  };
  const int64_t of_v = transforms ? floats(plan.k_blocks()) : 0;
  const int64_t of_x = t.dw ? floats(plan.vectors()) : 0;
  const int64_t of_sums =
      t.dw && keeps_sums ? W::kFrequencies * pairs * plan.vectors() * kSumBlock : 0;
  const int64_t of_bias = t.dbias ? plan.k_blocks() * kV : 0;
  const int64_t side = of_v + of_x + plan.most_runs() * of_bias;
  const int count = keeps_sums ? 2 : 1;
  const int64_t all = count * side + of_sums + 2 * of_bias;
  if (!memory.allocate(all)) return false;
  advise_huge_pages(memory.data, all * int64_t(sizeof(float)));
  for (int i = 0; i < 2; ++i) {
    sides[i].v = memory.data + i % count * side;
    sides[i].x = sides[i].v + of_v;
    sides[i].bias_parts = sides[i].x + of_x;
  }
  sums = memory.data + count * side;
  bias = reinterpret_cast<double*>(sums + of_sums);
  return true;
}

// What one thread does.
template <class W>
class GradientWorker {
 public:
  static constexpr int kM = W::kOutputs;
  static constexpr int kF = W::kFrequencies;

  static constexpr int kV = kLanes<float>;

  // `keeps_sums`: as memory has them. `turned`: U of all groups for dx, or null. `threads`: that
  // share the memory.
  GradientWorker(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
                 const GradientPlan& plan, GradientMemory& memory, bool keeps_sums,
                 const float* turned, int threads)
      : p_(problem),
        t_(tensors),
        plan_(plan),
        memory_(memory),
        keeps_sums_(keeps_sums),
        filters_(problem, tensors.w_channels_last),
        frame_(problem, tensors, plan.frame_rows(plan.most_run_strips()), plan.frame_columns(),
               plan.horizontal().last - plan.frame_columns() + 1, plan.frame_lanes()),
        input_(problem, plan, static_cast<const float*>(tensors.x)),
        gradient_(problem, tensors, plan, turned) {
    // vectors of x that share what is read of V, where enough is left for every thread
    while (together_ > 1 && weight_items() < 2 * threads) together_ /= 2;
  }

  bool prepare() {
    const int64_t area = p_.kernel_height * p_.kernel_width;
    const bool dw = t_.dw != nullptr;
    return blocks_[0].prepare(plan_) && blocks_[1].prepare(plan_) && frame_.prepare() &&
           frame_sums_.allocate(plan_.frame_lanes()) && (!t_.dx || gradient_.prepare()) &&
           (!dw || (input_.prepare(kM) && taps_.allocate(area * kV * kV))) &&
           (!dw || keeps_sums_ || sums_.allocate(kF * kSumBlock * together_));
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

  // Of filter k, to a sum of all super-blocks' or part of them.
  void add_bias(int64_t super, int64_t k, double* sum) const {
    const float* parts = memory_.sides[super % 2].bias_parts;
    for (int64_t run = 0; run < blocks_[super % 2].runs(); ++run) {
      *sum += static_cast<double>(parts[run * plan_.filters() + k]);
    }
  }

  // Chunks of tiles, part `share` of `shares`, by one group of channels.
  void input_gradient(int64_t super, int64_t group, int64_t share, int64_t shares) {
    const GradientBlock& block = blocks_[super % 2];
    const int64_t count = block.chunks().count;
    gradient_.run(block, memory_.sides[super % 2].v, group,
                  static_cast<int>(count * share / shares),
                  static_cast<int>(count * (share + 1) / shares));
  }

  // Where sums are kept: all vectors of x at one frequency. Else a block of sums at all
  // frequencies, and its dw, which goes to `dw`.
  int64_t k_pairs() const { return divide_up(plan_.k_blocks(), int64_t(kGradientVectors)); }
  int64_t weight_items() const {
    return k_pairs() * (keeps_sums_ ? int64_t(kF) : divide_up(plan_.vectors(), together_));
  }
  bool weight_gradient(int64_t super, int64_t item, float* dw) {
    const TransformedTiles tiles = {memory_.sides[super % 2].v, memory_.sides[super % 2].x};
    const TileChunks chunks = blocks_[super % 2].chunks();
    if (keeps_sums_) {
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
      finite &=
          finish_weight_block<W>(p_, plan_, filters_, vector, k,
                                 sums_.data + (vector - first) * kSumBlock, step, taps_.data, dw);
    }
    return finite;
  }

  // The way back of sums that were kept.
  int64_t finishing_items() const { return keeps_sums_ ? k_pairs() * plan_.vectors() : 0; }
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
    return memory_.sums + ((f * k_pairs() + pair) * plan_.vectors() + vector) * kSumBlock;
  }

  void transform_gradient(int64_t super, int64_t index, int64_t part) {
    const GradientBlock& block = blocks_[super % 2];
    const GradientMemory::Side& side = memory_.sides[super % 2];
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
    const GradientMemory::Side& side = memory_.sides[super % 2];
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
  GradientMemory& memory_;
  const bool keeps_sums_;
  const FilterLayout filters_;
  int64_t together_ = 4;
  GradientBlock blocks_[2];  // of even and odd super-blocks
  GradientFrame frame_;
  InputTiles input_;
  InputGradient<W> gradient_;
  Scratch<float> frame_sums_;
  Scratch<float> sums_;  // [frequency][together] blocks, where sums are not kept
  Scratch<float> taps_;
};

}  // namespace CMF_ISA
}  // namespace cmf

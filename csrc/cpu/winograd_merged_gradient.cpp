// Few input channels: the phases of a stride stand side by side as channels of one position, so
// that vectors are full. What is transformed is as large as many times x, and each value of it has
// few products: a thread transforms some tiles of dz and x, multiplies them while they are in its
// second cache, and goes on.
//
// With t taps and m outputs: dw = G^T [sum over tiles of (B^T x B) (A dz A^T)] G, the forward's
// bilinear form turned (Lavin and Gray, arXiv 1509.09308). Sums are taken over runs of tiles, from
// zero; runs are added to one of a fixed number of partial gradients, and those in double: the same
// bits for any number of threads.
#include "cpu/winograd_merged_gradient.h"

#include "cpu/filter_layout.h"
#include "cpu/gradient_frame.h"
#include "cpu/gradient_tile.h"
#include "cpu/integers.h"
#include "cpu/merged_frame.h"
#include "cpu/own_items.h"
#include "cpu/partial_biases.h"
#include "cpu/winograd.h"
#include "cpu/winograd_weight_gradient.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kMostOfPhase = 8;    // channels of x
constexpr int64_t kMostChannels = 64;  // of all phases
constexpr int kMostLanes = 64;         // filters whose gradient is expanded at once
constexpr int64_t kChunk = 32;         // tiles that are transformed, then multiplied, about
constexpr int64_t kMostChunk = 48;     // at most
constexpr int64_t kMostPartials = 32;
// A parallel region costs about as much as this many multiply-adds take one thread.
constexpr int64_t kProductsPerThread = 1 << 20;

// How a problem is cut; everything depends on the problem alone.
struct MergedPlan {
  MergedPlan(const ConvActPool2dProblem& p, int outputs, int taps) {
    channels = p.in_channels * p.stride_height * p.stride_width;
    vectors = divide_up(channels, kV);
    filters = p.pool.channels;
    lanes = static_cast<int>(least(round_up(filters, kV), kMostLanes));
    groups = divide_up(filters, lanes);
    strips = divide_up(p.pool.height, outputs);
    columns = divide_up(p.pool.width, outputs);
    run_strips = least(most(kChunk / columns, 1), strips);
    bands = divide_up(strips, run_strips);
    run_strips = divide_up(strips, bands);
    runs = p.pool.batch * bands;
    partials = least(runs, kMostPartials);
    k_blocks = divide_up(filters, kV);
    partial_floats = k_blocks * channels * taps * taps * kV;
  }

  int64_t channels;  // of a position
  int64_t vectors;   // of them
  int64_t filters;
  int64_t k_blocks;  // vectors of filters
  int lanes;         // filters of a group
  int64_t groups;
  int64_t strips;   // rows of tiles of an image
  int64_t columns;  // of tiles
  int64_t run_strips;
  int64_t bands;  // runs of an image
  int64_t runs;
  int64_t partials;
  int64_t partial_floats;  // [k block][channel][tap][lane]
};

template <class W>
class Worker {
 public:
  static constexpr int kM = W::kOutputs;
  static constexpr int kF = W::kFrequencies;

  Worker(const ConvActPool2dProblem& problem, const ConvBackwardTensors& tensors,
         const MergedPlan& plan)
      : p_(problem),
        t_(tensors),
        plan_(plan),
        gradient_(problem, tensors, plan.run_strips * kM, plan.columns * kM, 0, plan.lanes),
        input_(problem, static_cast<const float*>(tensors.x), plan.run_strips * kM + W::kTaps - 1,
               plan.columns * kM + W::kTaps - 1),
        z_layout_{kF, plan.lanes / kV},
        x_layout_{kF, plan.vectors},
        // frequencies a multiple of 4096 bytes apart would share the sets of a cache
        sums_step_(plan.vectors * divide_up(plan.lanes, kSumColumns) * kSumBlock + kV) {}

  bool prepare() {
    return gradient_.prepare() && input_.prepare() &&
           z_.allocate(z_layout_.floats(kMostChunk, 1)) &&
           x_.allocate(x_layout_.floats(kMostChunk, 1)) && sums_.allocate(kF * sums_step_) &&
           bias_.allocate(plan_.lanes);
  }

  // Partial gradient `partial` of a group's filters: taps [k block][channel][tap][lane] and
  // bias_sums [filter], both of all filters.
  void run(int64_t partial, int64_t group, float* taps, double* bias_sums) {
    const int64_t k_first = group * plan_.lanes;
    const int count = static_cast<int>(least(plan_.filters - k_first, plan_.lanes));
    const Range runs =
        part_of(plan_.runs, static_cast<int>(partial), static_cast<int>(plan_.partials));
    bool add = false;
    for (int64_t run = runs.first; run < runs.last; ++run) {
      const int64_t n = run / plan_.bands;
      const int64_t begin = run % plan_.bands * plan_.run_strips;
      const int64_t strips = least(plan_.run_strips, plan_.strips - begin);
      gradient_.fill(n, begin * kM, strips * kM, k_first, count);
      if (t_.dbias) add_bias(begin, strips, count, run == runs.first, bias_sums + k_first);
      input_.fill(n, begin * kM, strips * kM + W::kTaps - 1);
      const int64_t tiles = strips * plan_.columns;
      const int64_t chunks = divide_up(tiles, kMostChunk);
      for (int64_t i = 0; i < chunks; ++i) {
        const int64_t from = tiles * i / chunks, to = tiles * (i + 1) / chunks;
        transform(begin, from, to, divide_up(count, kV));
        multiply(to - from, divide_up(count, kV), add);
        add = true;
      }
    }
    finish(divide_up(count, kV), taps + k_first * plan_.channels * W::kTaps * W::kTaps);
  }

 private:
  void add_bias(int64_t strip, int64_t strips, int count, bool first, double* sums) {
    gradient_.sum_rows(strip * kM, (strip + strips) * kM, bias_.data);
    for (int k = 0; k < count; ++k) {
      sums[k] = (first ? 0.0 : sums[k]) + static_cast<double>(bias_.data[k]);
    }
  }

  void transform(int64_t strip, int64_t from, int64_t to, int64_t k_blocks) {
    const int64_t size = to - from;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t row = (strip + (from + i) / plan_.columns) * kM;
      const int64_t column = (from + i) % plan_.columns * kM;
      const float* z = gradient_.at(row, column);
      for (int64_t k = 0; k < k_blocks; ++k) {
        spread_output_tile<W>(z + k * kV, gradient_.row_step(), gradient_.column_step(),
                              z_.data + z_layout_.at(0, 0, size, 0, k) + i * kV,
                              z_layout_.step(size));
      }
      const float* x = input_.at(row, column);
      for (int64_t v = 0; v < plan_.vectors; ++v) {
        transform_input_tile<W>(x + v * kV, input_.row_step(), plan_.channels,
                                x_.data + x_layout_.at(0, 0, size, 0, v) + i * kV,
                                x_layout_.step(size));
      }
    }
  }

  // sums [frequency][pair of k blocks][vector] blocks, of winograd_weight_gradient.h
  void multiply(int64_t size, int64_t k_blocks, bool add) {
    const int64_t first[2] = {0, size};
    const TileChunks chunks = {0, 1, first};
    for (int f = 0; f < kF; ++f) {
      float* sums = sums_.data + f * sums_step_;
      for (int64_t k = 0; k < k_blocks; k += kGradientVectors) {
        const int vectors = k_blocks - k > 1 ? 2 : 1;
        const bool last = k + kGradientVectors >= k_blocks;
        const TilePanel b = {z_.data, z_layout_, f, k, last, last ? -k : int64_t(kGradientVectors)};
        for (int64_t v = 0; v < plan_.vectors; ++v, sums += kSumBlock) {
          const int64_t rows = least(plan_.channels - v * kV, kV);
          for (int64_t row = 0; row < rows; row += kGradientRows) {
            const TilePanel a = {x_.data + row, x_layout_, f, v, last, 0};
            gradient_tile_for(static_cast<int>(least(rows - row, kGradientRows)), vectors, add)(
                a, b, chunks, sums + row * kSumColumns);
          }
        }
      }
    }
  }

  // G^T U G
  void finish(int64_t k_blocks, float* taps) const {
    constexpr int kT = W::kTaps;
    for (int64_t k = 0; k < k_blocks; ++k) {
      const float* sums =
          sums_.data + k / kGradientVectors * plan_.vectors * kSumBlock + k % kGradientVectors * kV;
      for (int64_t c = 0; c < plan_.channels; ++c, taps += kT * kT * kV) {
        Vec<float> w[kT][kT];
        gather_weight_tile<W>(sums + c / kV * kSumBlock + c % kV * kSumColumns, sums_step_, false,
                              false, w);
        CMF_UNROLL
        for (int i = 0; i < kT * kT; ++i) store<float>(taps + i * kV, w[i / kT][i % kT]);
      }
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvBackwardTensors& t_;
  const MergedPlan& plan_;
  GradientFrame gradient_;
  MergedFrame input_;
  const PanelLayout z_layout_;
  const PanelLayout x_layout_;
  const int64_t sums_step_;
  Scratch<float> z_;  // A dz A^T [frequency][k block][tile][lane]
  Scratch<float> x_;  // B^T x B [frequency][vector][tile][lane]
  Scratch<float> sums_;
  Scratch<float> bias_;
};

// The partial gradients' sums of one vector of filters and one channel of all phases, in double and
// in order, to their places in dw. False where one is not finite.
bool add_partials(const ConvActPool2dProblem& p, const MergedPlan& plan, int taps,
                  const float* partials, int64_t k_block, int64_t channel, bool channels_last,
                  float* dw) {
  const FilterLayout layout(p, channels_last);
  const int64_t phase = channel / p.in_channels;
  const int64_t lanes = least(plan.filters - k_block * kV, kV);
  const int64_t at = (k_block * plan.channels + channel) * taps * taps * kV;
  bool finite = true;
  for (int64_t i = 0; i < taps * taps; ++i) {
    const int64_t r = i / taps * p.stride_height + phase / p.stride_width;
    const int64_t s = i % taps * p.stride_width + phase % p.stride_width;
    if (r >= p.kernel_height || s >= p.kernel_width) continue;
    double total[kV] = {};
    for (int64_t m = 0; m < plan.partials; ++m) {
      const float* source = partials + m * plan.partial_floats + at + i * kV;
      for (int lane = 0; lane < kV; ++lane) total[lane] += static_cast<double>(source[lane]);
    }
    float* target = dw + layout.at(k_block * kV, channel % p.in_channels) +
                    (r * p.kernel_width + s) * layout.tap;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float value = static_cast<float>(total[lane]);
      target[lane * layout.filter] = value;
      finite &= value - value == 0;
    }
  }
  return finite;
}

template <class W>
bool merged_gradient(const ConvActPool2dProblem& p, const ConvBackwardTensors& t, int threads) {
  const MergedPlan plan(p, W::kOutputs, W::kTaps);
  const int64_t products = p.pool.batch * plan.strips * plan.columns * W::kFrequencies *
                           plan.channels * round_up(plan.filters, kV);
  threads = static_cast<int>(most(1, least(threads, products / kProductsPerThread)));
  Scratch<float> partials;
  Scratch<double> bias_sums;  // [partial][filter]
  OwnItems items;
  if (!items.prepare(plan.partials * plan.groups, threads) ||
      !partials.allocate(plan.partials * plan.partial_floats) ||
      !bias_sums.allocate(plan.partials * plan.filters)) {
    return false;
  }
  const bool success = in_parallel(threads, threads, [&](Range) {
    Worker<W> worker(p, t, plan);
    if (!worker.prepare()) return false;
    for (int64_t item; (item = items.take()) >= 0;) {
      const int64_t m = item % plan.partials;
      worker.run(m, item / plan.partials, partials.data + m * plan.partial_floats,
                 bias_sums.data + m * plan.filters);
    }
    return true;
  });
  if (!success) return false;
  const bool finite = in_parallel(plan.k_blocks * plan.channels, threads, [&](Range blocks) {
    bool all_finite = true;
    for (int64_t block = blocks.first; block < blocks.last; ++block) {
      all_finite &=
          add_partials(p, plan, W::kTaps, partials.data, block / plan.channels,
                       block % plan.channels, t.w_channels_last, static_cast<float*>(t.dw));
    }
    return all_finite;
  });
  if (t.dbias) {
    add_partial_biases(bias_sums.data, plan.partials, plan.filters, static_cast<float*>(t.dbias));
  }
  if (t.dw_spoilt) *t.dw_spoilt = !finite;
  return true;
}

}  // namespace

bool winograd_merges_phases(const ConvActPool2dProblem& p) {
  return winograd_parts(p).count() == 1 && p.in_channels <= kMostOfPhase &&
         p.in_channels * p.stride_height * p.stride_width <= kMostChannels;
}

bool winograd_merged_gradient(const ConvActPool2dProblem& p, const ConvBackwardTensors& t,
                              int threads) {
  const int outputs = winograd_gradient_outputs(p);
  return with_winograd(p, outputs,
                       [&](auto w) { return merged_gradient<decltype(w)>(p, t, threads); });
}

}  // namespace CMF_ISA
}  // namespace cmf

// What becomes of a tile's products: the inverse transform, bias, windows that lie inside the tile,
// and activations of few instructions, all in registers.
#pragma once

#include "common/pool_reduce.h"
#include "cpu/band_epilogue.h"
#include "cpu/quick_activation.h"
#include "cpu/winograd_bands.h"
#include "cpu/winograd_direct.h"
#include "cpu/winograd_tile.h"

namespace cmf {
namespace CMF_ISA {

// How a pooling is done: in registers where each window lies inside a tile and no mask is wanted.
CMF_HOST_DEVICE TileStore tile_store(const ActPool2dProblem& p, int outputs, bool track) {
  if (outputs % 2 != 0) return TileStore::kOutput;
  const bool pairs = p.pool_height == 2 && p.pool_width == 2 && p.pool_stride_height == 2 &&
                     p.pool_stride_width == 2 && p.pool_pad_height == 0 && p.pool_pad_width == 0 &&
                     2 * p.out_height <= p.height && 2 * p.out_width <= p.width;
  const Activation activation = static_cast<Activation>(p.activation);
  if (!pairs) return TileStore::kOutput;
  if (p.pool == Pool::kMax && p.monotone) return TileStore::kMax;
  const bool simple = activation == Activation::kIdentity || activation == Activation::kRelu ||
                      activation == Activation::kLeakyRelu;
  // an average's mask is BandEpilogue's
  return p.pool == Pool::kAvg && simple && !track ? TileStore::kAverage : TileStore::kOutput;
}

// Outputs from (row, column) of image n.
struct TilePlace {
  int64_t n;
  int64_t row;
  int64_t column;
};

// Where they go, and how many of them (or of windows) count.
struct TileTarget {
  float* values;
  uint8_t* codes;  // of windows, or null
  int64_t row_step;
  int64_t column_step;
  int64_t rows;
  int64_t columns;
};

template <class W>
class WinogradOutput {
 public:
  typedef Vec<float> V;
  static constexpr int kM = W::kOutputs;
  static constexpr int kV = kLanes<float>;

  WinogradOutput(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                 TileStore store)
      : p_(problem),
        t_(tensors),
        store_(store),
        quick_(quick_activation(problem.pool)),
        residual_(static_cast<const float*>(tensors.residual)),
        activates_((store != TileStore::kOutput || problem.pool.pool == Pool::kNone) &&
                   quick_.kind != QuickActivation::kAfterwards),
        y_pixel_(y_pixel(problem.pool, tensors)),
        past_caches_(streams_pixels(problem.pool, y_pixel_, static_cast<const float*>(tensors.y))),
        straight_(activates_ && problem.pool.channels_last && !tensors.index &&
                  (!past_caches_ || kV * sizeof(float) == kLineBytes)) {}

  // Whether what is stored is activated already, and whether it goes to y itself, NHWC, and not to
  // a band of scratch. Lines past the caches are written whole.
  bool activates() const { return activates_ && (straight_ || !residual_); }
  bool straight() const { return straight_; }
  int64_t pixel() const { return straight_ ? y_pixel_ : kWinogradColumns; }  // floats to the next
  // Before others read y.
  void fence() const {
    if (past_caches_) fence_streams();
  }

  // From m, frequency f at m + f · step, a vector of channels from `channel` on, to `target`.
  void run(const float* m, int64_t step, const TilePlace& place, int64_t channel,
           const TileTarget& target) const {
    V z[kM][kM];
    transform_output_tile<W>(m, step, z);
    V sum = z[0][0];
    CMF_UNROLL
    for (int i = 1; i < kM * kM; ++i) sum += z[i / kM][i % kM];
    // infinity and NaN anywhere in the tile spread over all of it: such tiles are summed tap by tap
    if (__builtin_expect(any_nan(sum - sum), 0)) {
      direct_tile<kM>(p_, t_, place.n, place.row, place.column, channel, z);
    }
    const int64_t left = p_.pool.channels - channel;
    const V bias = t_.bias ? load_lanes<float>(static_cast<const float*>(t_.bias) + channel,
                                               left < kV ? static_cast<int>(left) : kV)
                           : broadcast<float>(-0.0f);
    const int lanes = straight_ && left < kV ? static_cast<int>(left) : kV;
    if (store_ == TileStore::kMax) {
      target.codes ? windows<MaxReducer, true>(z, bias, lanes, target)
                   : windows<MaxReducer, false>(z, bias, lanes, target);
      return;
    }
    CMF_UNROLL
    for (int i = 0; i < kM * kM; ++i) z[i / kM][i % kM] += bias;
    if (residual_ && straight_) add_residual(z, lanes, target);
    if (activates()) quick_.each<kM * kM>(&z[0][0]);
    if (store_ == TileStore::kOutput) {
      put<kM>(z, lanes, target);
    } else {
      windows<SumReducer, false>(z, bias, lanes, target);
    }
  }

 private:
  // Of the outputs that count: there is none beside the others.
  CMF_HOST_DEVICE void add_residual(V (&z)[kM][kM], int lanes, const TileTarget& target) const {
    const float* source = residual_ + (target.values - static_cast<const float*>(t_.y));
    CMF_UNROLL
    for (int i = 0; i < kM; ++i) {
      CMF_UNROLL
      for (int j = 0; j < kM; ++j) {
        if (i >= target.rows || j >= target.columns) continue;
        z[i][j] += load_lanes<float>(source + i * target.row_step + j * target.column_step, lanes);
      }
    }
  }

  template <template <class, class, class, bool> class Reducer, bool kTrack>
  CMF_HOST_DEVICE void windows(const V (&z)[kM][kM], V bias, int lanes,
                               const TileTarget& target) const {
    const MaskRule<float> rule = {0, false};
    V values[kM / 2][kM / 2];
    CMF_UNROLL
    for (int i = 0; i < kM / 2; ++i) {
      CMF_UNROLL
      for (int j = 0; j < kM / 2; ++j) {
        Reducer<float, V, Mask<float>, kTrack> reducer(rule);
        reducer.begin(z[2 * i][2 * j], 0);
        reducer.add(z[2 * i][2 * j + 1], 1);
        reducer.add(z[2 * i + 1][2 * j], 2);
        reducer.add(z[2 * i + 1][2 * j + 1], 3);
        values[i][j] = store_ == TileStore::kAverage ? reducer.value * 0.25f : reducer.value + bias;
        if (!kTrack || i >= target.rows || j >= target.columns) continue;
        store_bytes<float>(target.codes + i * target.row_step + j * target.column_step,
                           reducer.code);
      }
    }
    if (store_ == TileStore::kMax && activates_) quick_.each<kM * kM / 4>(&values[0][0]);
    put<kM / 2>(values, lanes, target);
  }

  // Stores what counts of a tile's values.
  template <int kSize>
  CMF_HOST_DEVICE void put(const V (&values)[kSize][kSize], int lanes,
                           const TileTarget& target) const {
    const auto each = [&](auto&& store_one) {
      const bool whole = target.columns == kSize && target.rows == kSize;
      CMF_UNROLL
      for (int i = 0; i < kSize; ++i) {
        CMF_UNROLL
        for (int j = 0; j < kSize; ++j) {
          if (!whole && (i >= target.rows || j >= target.columns)) continue;
          store_one(target.values + i * target.row_step + j * target.column_step, values[i][j]);
        }
      }
    };
    if (straight_ && past_caches_) {
      each([](float* to, V value) { stream(to, value); });
    } else if (lanes == kV) {
      each([](float* to, V value) { store<float>(to, value); });
    } else {
      each([lanes](float* to, V value) { store_partial<float>(to, value, lanes); });
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const TileStore store_;
  const QuickActivation quick_;
  const float* const residual_;
  const bool activates_;
  const int64_t y_pixel_;
  const bool past_caches_;
  const bool straight_;
};

}  // namespace CMF_ISA
}  // namespace cmf

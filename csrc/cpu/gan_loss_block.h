// A stretch of elements of one GAN loss: what is summed and stored for each vector of them.
//
// A sum of logarithms is the logarithm of a product. Where a function ends in log(1 + odds), a lane
// multiplies up the factors 1 + odds of its elements and takes one logarithm at the block's end: a
// quarter of all arithmetic saved. It keeps the product less 1, so the small odds of a
// discriminator that is sure lose no digits.
#pragma once

#include "common/gan_loss.h"
#include "cpu/simd.h"
#include "cpu/vector_math.h"

namespace cmf {
namespace CMF_ISA {

// Elements: what is computed or converted beforehand lies in the L1 cache, and a lane's product of
// 64 factors, at most 2 each, is far from the largest number (of 128 in double).
constexpr int kBlock = 64 * kLanes<float>;
constexpr int kChains = 2;  // of sums: a vector's addition need not wait for the last one's

enum Mode { kSum, kSumAndGradients, kGradients, kElements, kElementGradients };

// A stretch of up to kBlock elements in the compute type.
template <class C>
struct Block {
  const C* operand[3];  // those that the function takes
  const C* grad;        // kElementGradients: the incoming gradient of each element
  C* dx;                // or null
  C* dy;                // or null
  C* value;             // kElements: the loss of each element
  int count;
  bool add;  // kElements: to what `value` holds
  C parameter;
  C factor;                // of the gradients; kElements: of the value
  double sums[kLanes<C>];  // kSum, kSumAndGradients: are added to, a lane each
  bool bad;                // is set
};

// What a chain of vectors adds up to.
template <class C>
struct Chain {
  Vec<C> sum;
  Vec<C> odds;  // the product of all 1 + odds, less 1
};

// (1 + a)(1 + b) - 1
template <class V>
CMF_HOST_DEVICE V multiply_odds(V a, V b) {
  return (a * b + b) + a;
}

// One vector of elements; `count` is a constant kLanes<C> in all but the last.
template <class C, class F, Mode kMode>
CMF_HOST_DEVICE void run_vector(const Block<C>& block, const C* odds_of_block, int i, int count,
                                Chain<C>* chain, Mask<C>* bad) {
  using V = Vec<C>;
  const V x = load_lanes<C>(block.operand[0] + i, count);
  const V y = F::kOperands > 1 ? load_lanes<C>(block.operand[1] + i, count) : V{};
  const V weight = F::kOperands > 2 ? load_lanes<C>(block.operand[2] + i, count) : V{};
  const V odds = F::kLogistic ? load<C>(odds_of_block + i) : V{};
  V grad = broadcast<C>(block.factor);
  if (kMode == kElementGradients) grad *= load_lanes<C>(block.grad + i, count);
  const GanLossResult<V> result =
      F::evaluate(x, y, weight, odds, broadcast<C>(block.parameter), grad);
  if (kMode == kSum || kMode == kSumAndGradients) {
    const Mask<C> inside = iota<C>(0, 1) < broadcast_integer<C>(count);
    const bool whole = count == kLanes<C>;
    chain->sum += whole ? result.value : select(inside, result.value, V{});
    if (F::kAddsLogarithm) {
      chain->odds = multiply_odds(chain->odds, whole ? odds : select(inside, odds, V{}));
    }
  }
  if (kMode == kElements) {
    V value = result.value;
    if (F::kAddsLogarithm) value += log_one_plus(odds);
    value *= block.factor;
    if (block.add) value += load_lanes<C>(block.value + i, count);
    store_lanes<C>(block.value + i, value, count);
  }
  if (kMode == kSumAndGradients || kMode == kGradients || kMode == kElementGradients) {
    if (block.dx) store_lanes<C>(block.dx + i, result.dx, count);
    if (F::kOperands > 1 && block.dy) store_lanes<C>(block.dy + i, result.dy, count);
  }
  if (kMode != kGradients && kMode != kElementGradients) *bad |= result.bad;
}

// exp(-|logit|) of every element; `count` is a constant kLanes<C> in all but the last call.
template <class C, class F>
CMF_HOST_DEVICE void run_odds(const Block<C>& block, int i, int count, C* odds) {
  using V = Vec<C>;
  const V x = load_lanes<C>(block.operand[0] + i, count);
  const V y = F::kOperands > 1 ? load_lanes<C>(block.operand[1] + i, count) : V{};
  store<C>(odds + i, exp_minus_magnitude(F::logit(x, y)));
}

template <class C, class F, Mode kMode>
void run_block(Block<C>& given) {
  constexpr int kLane = kLanes<C>;
  const Block<C> block = given;  // a local one can't alias what is stored to
  alignas(CMF_VECTOR_BYTES) C odds[F::kLogistic ? kBlock : 1];
  if constexpr (F::kLogistic) {
    int i = 0;
    for (; i + kLane <= block.count; i += kLane) run_odds<C, F>(block, i, kLane, odds);
    if (i < block.count) run_odds<C, F>(block, i, block.count - i, odds);
  }
  Chain<C> chains[kChains] = {};
  Mask<C> bad = {};
  int i = 0;
  for (; i + kChains * kLane <= block.count; i += kChains * kLane) {
    run_vector<C, F, kMode>(block, odds, i, kLane, &chains[0], &bad);
    run_vector<C, F, kMode>(block, odds, i + kLane, kLane, &chains[1], &bad);
  }
  for (; i < block.count; i += kLane) {
    const int left = block.count - i;
    if (left >= kLane) {
      run_vector<C, F, kMode>(block, odds, i, kLane, &chains[0], &bad);
    } else {
      run_vector<C, F, kMode>(block, odds, i, left, &chains[1], &bad);
    }
  }
  if (kMode == kSum || kMode == kSumAndGradients) {
    Vec<C> sum = chains[0].sum + chains[1].sum;
    if (F::kAddsLogarithm) sum += log1p(multiply_odds(chains[0].odds, chains[1].odds));
    C lanes[kLane];
    store<C>(lanes, sum);
    for (int lane = 0; lane < kLane; ++lane) given.sums[lane] += static_cast<double>(lanes[lane]);
  }
  if (F::kHasDomain && kMode != kGradients && kMode != kElementGradients) {
    for (int lane = 0; lane < kLane; ++lane) given.bad = given.bad || bad[lane] != 0;
  }
}

template <class C, class F>
void run_mode(Mode mode, Block<C>& block) {
  switch (mode) {
    case kSum:
      return run_block<C, F, kSum>(block);
    case kSumAndGradients:
      return run_block<C, F, kSumAndGradients>(block);
    case kGradients:
      return run_block<C, F, kGradients>(block);
    case kElements:
      return run_block<C, F, kElements>(block);
    case kElementGradients:
      return run_block<C, F, kElementGradients>(block);
  }
}

template <class C>
void run_function(GanLossFunction function, Mode mode, Block<C>& block) {
  switch (function) {
    case GanLossFunction::kLogLossLogits:
      return run_mode<C, LogLossLogits>(mode, block);
    case GanLossFunction::kLogLossProbabilities:
      return run_mode<C, LogLossProbabilities>(mode, block);
    case GanLossFunction::kLeastSquares:
      return run_mode<C, LeastSquares>(mode, block);
    case GanLossFunction::kHinge:
      return run_mode<C, Hinge>(mode, block);
    case GanLossFunction::kLinear:
      return run_mode<C, Linear>(mode, block);
    case GanLossFunction::kRelativistic:
      return run_mode<C, Relativistic>(mode, block);
    case GanLossFunction::kLogLossLogitsTarget:
      return run_mode<C, LogLossLogitsTarget<false>>(mode, block);
    case GanLossFunction::kLogLossProbabilitiesTarget:
      return run_mode<C, LogLossProbabilitiesTarget<false>>(mode, block);
    case GanLossFunction::kLogLossLogitsTargetWeight:
      return run_mode<C, LogLossLogitsTarget<true>>(mode, block);
    case GanLossFunction::kLogLossProbabilitiesTargetWeight:
      return run_mode<C, LogLossProbabilitiesTarget<true>>(mode, block);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

// All transformed weights of a problem.
#include "cpu/winograd_weights.h"

#include "cpu/groups.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kPreparedBlocks = 4;

template <class W>
bool prepare(const ConvActPool2dProblem& p, const float* w, float* prepared, int threads) {
  WinogradChannels channels;
  if (!channels.prepare(p, W::kTaps)) return false;
  const int64_t k_blocks = divide_up(p.pool.channels, int64_t(kWinogradColumns));
  const int64_t block_size = W::kFrequencies * channels.weight_step(kWinogradColumns);
  // a few channel blocks each; merged ones are gathered together
  const int64_t count = channels.count();
  const int64_t together = channels.merged() ? count : kPreparedBlocks;
  const int64_t parts = divide_up(count, together);
  const int64_t items = k_blocks * parts;
  const FilterLayout layout(p, false);
  return in_parallel(items, static_cast<int>(least(items, threads)), [&](Range range) {
    Scratch<float> taps;
    if (!taps.allocate(weight_tap_floats(p, channels))) return false;
    for (int64_t item = range.first; item < range.last; ++item) {
      const int64_t k = item / parts * kWinogradColumns;
      const int64_t columns = filter_vectors(p, k) * kLanes<float>;
      const int64_t first = item % parts * together;
      const WeightPart part = {k, static_cast<int>(first),
                               static_cast<int>(least(first + together, count))};
      transform_weights<W>(p, channels, layout, w, nullptr, part, taps.data,
                           prepared + item / parts * block_size + first * kLanes<float> * columns,
                           channels.weight_step(columns));
    }
    return true;
  });
}

template <class W>
bool prepare_groups(const Groups& groups, const void* w, void* prepared, int threads) {
  const ConvActPool2dProblem& p = groups.problem();
  const int64_t size = winograd_weight_floats(p, W::kOutputs);
  return size > 0 && groups.each(threads, [&](int64_t g, int threads_of_group) {
    return prepare<W>(p, static_cast<const float*>(groups.weights(w, g)),
                      static_cast<float*>(prepared) + g * size, threads_of_group);
  });
}

}  // namespace

int64_t winograd_weight_floats(const ConvActPool2dProblem& p, int outputs) {
  const int taps = winograd_taps(p);
  WinogradChannels channels;
  if (!channels.prepare(p, taps)) return 0;
  const int64_t alpha = outputs + taps - 1;
  const int64_t k_blocks = divide_up(p.pool.channels, int64_t(kWinogradColumns));
  return k_blocks * alpha * alpha * channels.weight_step(kWinogradColumns);
}

int64_t winograd_prepared_size(const ConvActPool2dProblem& p) {
  const Groups groups(p);
  return groups.count() *
         winograd_weight_floats(groups.problem(), winograd_outputs(groups.problem()));
}
int64_t winograd_f6_prepared_size(const ConvActPool2dProblem& p) {
  const Groups groups(p);
  return groups.count() * winograd_weight_floats(groups.problem(), 6);
}

bool winograd_f6_prepare(const ConvActPool2dProblem& p, const void* w, void* prepared,
                         int threads) {
  return prepare_groups<Winograd<6, 3>>(Groups(p), w, prepared, threads);
}

bool winograd_prepare(const ConvActPool2dProblem& p, const void* w, void* prepared, int threads) {
  const Groups groups(p);
  return with_winograd(groups.problem(), winograd_outputs(groups.problem()), [&](auto f) {
    return prepare_groups<decltype(f)>(groups, w, prepared, threads);
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

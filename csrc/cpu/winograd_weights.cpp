// U = G w G^T of every filter and channel, in the order in which the products read it.
#include <stdlib.h>

#include "cpu/turn_filters.h"
#include "cpu/winograd.h"
#include "cpu/winograd_tile.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;

template <class W>
bool prepare(const ConvActPool2dProblem& p, const float* w, float* prepared, int threads) {
  WinogradChannels channels;
  if (!channels.prepare(p, W::kTaps)) return false;
  const int64_t area = p.kernel_height * p.kernel_width;
  const int64_t filters = p.pool.channels;
  const int64_t k_blocks = (filters + kWinogradColumns - 1) / kWinogradColumns;
  const int64_t block_size = W::kFrequencies * channels.weight_step(kWinogradColumns);
  // channels of w that are gathered at once: those of a block, or all where pixels are merged
  const int64_t gathered = channels.merged() ? p.in_channels : kV;
  const int64_t runs = (p.in_channels + gathered - 1) / gathered;
  bool success = true;
  const int parts = k_blocks * runs < threads ? static_cast<int>(k_blocks * runs) : threads;
#if defined(_OPENMP)
#pragma omp parallel num_threads(parts) if (parts > 1)
#endif
  {
    float* taps =
        static_cast<float*>(malloc(static_cast<size_t>(gathered * area * kV) * sizeof(float)));
    if (!taps) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      success = false;
    }
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
    for (int64_t item = 0; item < k_blocks * runs; ++item) {
      if (!taps) continue;
      const int64_t k_first = item / runs * kWinogradColumns;
      const int64_t c_first = item % runs * gathered;
      const int vectors = filters - k_first > kV ? 2 : 1;
      const int columns = vectors * kV;
      float* u_block = prepared + item / runs * block_size;
      const int64_t step = channels.weight_step(columns);
      const int64_t c_count =
          p.in_channels - c_first < gathered ? p.in_channels - c_first : gathered;
      for (int v = 0; v < vectors; ++v) {
        const int64_t k = k_first + v * kV;
        const int count = filters - k < kV ? static_cast<int>(filters - k) : kV;
        turn_filters(w + (k * p.in_channels + c_first) * area, p.in_channels * area, count,
                     c_count * area, taps, kV);
        for (int b = 0; b < channels.count(); ++b) {
          const ChannelBlock& block = channels[b];
          if (!channels.merged() && block.first != c_first) continue;
          for (int lane = 0; lane < block.lanes; ++lane) {
            const int64_t virtual_channel = block.first + lane;
            const int64_t c = channels.merged() ? virtual_channel % p.in_channels : lane;
            const int64_t j =
                channels.merged() ? virtual_channel / p.in_channels : block.phase_width;
            V filter[W::kTaps][W::kTaps];
            for (int r = 0; r < W::kTaps; ++r) {
              for (int s = 0; s < W::kTaps; ++s) {
                const int64_t tap_height = r * p.stride_height + block.phase_height;
                const int64_t tap_width = s * p.stride_width + j;
                const bool inside = tap_height < p.kernel_height && tap_width < p.kernel_width;
                const int64_t tap = c * area + tap_height * p.kernel_width + tap_width;
                filter[r][s] = inside ? load<float>(taps + tap * kV) : V{};
              }
            }
            transform_weight_tile<W>(filter, u_block + (int64_t(b) * kV + lane) * columns + v * kV,
                                     step);
          }
        }
      }
    }
    free(taps);
  }
  return success;
}

// Floats of U for F(m, r).
int64_t prepared_size(const ConvActPool2dProblem& p, int outputs) {
  const int taps = winograd_taps(p);
  WinogradChannels channels;
  if (!channels.prepare(p, taps)) return 0;
  const int64_t alpha = outputs + taps - 1;
  const int64_t k_blocks = (p.pool.channels + kWinogradColumns - 1) / kWinogradColumns;
  return k_blocks * alpha * alpha * channels.weight_step(kWinogradColumns);
}

}  // namespace

int64_t winograd_prepared_size(const ConvActPool2dProblem& p) {
  return prepared_size(p, winograd_outputs(p));
}
int64_t winograd_f6_prepared_size(const ConvActPool2dProblem& p) { return prepared_size(p, 6); }

bool winograd_f6_prepare(const ConvActPool2dProblem& p, const void* w, void* prepared,
                         int threads) {
  return prepare<Winograd<6, 3>>(p, static_cast<const float*>(w), static_cast<float*>(prepared),
                                 threads);
}

bool winograd_prepare(const ConvActPool2dProblem& p, const void* w, void* prepared, int threads) {
  const float* weights = static_cast<const float*>(w);
  float* u = static_cast<float*>(prepared);
  return with_winograd(p, winograd_outputs(p),
                       [&](auto f) { return prepare<decltype(f)>(p, weights, u, threads); });
}

}  // namespace CMF_ISA
}  // namespace cmf

// Weights for the products: [panel][block][part][tile][16 pairs][16 filters][2] in bfloat16, each
// part rounded.
#include <string.h>

#include "cpu/implicit_gemm.h"
#include "cpu/implicit_gemm_layout.h"
#include "cpu/parts.h"
#include "cpu/scratch.h"
#include "cpu/turn_filters.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int kHalf = kTileElements / 2;

// Row `pair` of the parts' tiles.
void store_pair(const float* first, const float* second, uint16_t* target) {
  for (int k = 0; k < kTileColumns; k += kV) {
    const Parts a = round_parts(load<float>(first + k)), b = round_parts(load<float>(second + k));
    for (int i = 0; i < kParts; ++i) {
      const PartBits pairs = pair_parts(a.bits[i], b.bits[i]);
      memcpy(target + i * kPanelTiles * kTileSize + 2 * k, &pairs, sizeof pairs);
    }
  }
}

class Weights {
 public:
  Weights(const ConvActPool2dProblem& p, const ImplicitGemmLayout& layout, const float* w,
          uint16_t* prepared)
      : p_(p),
        layout_(layout),
        w_(w),
        prepared_(prepared),
        area_(p.kernel_height * p.kernel_width) {}

  int64_t units() const { return divide_up(p_.pool.channels, kPanelFilters) * kPanelTiles; }

  // Tiles of 16 filters.
  bool run(Range units) const {
    // the turned weights, and a row of zeros for what does not exist
    const int64_t channels = layout_.merged ? p_.in_channels : kTileElements;
    const int64_t count = channels * area_;
    Scratch<float> turned;
    if (!turned.allocate((count + 1) * kTileColumns)) return false;
    const float* zeros = turned.data + count * kTileColumns;
    memset(turned.data, 0, static_cast<size_t>((count + 1) * kTileColumns) * sizeof(float));
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      uint16_t* target = prepared_ + unit / kPanelTiles * layout_.blocks * kBlockSize +
                         unit % kPanelTiles * kTileSize;
      for (int64_t first = 0; first < p_.in_channels; first += channels) {
        turn(unit, first, least(channels, p_.in_channels - first), turned.data);
        if (layout_.merged) {
          store_run(turned.data, zeros, target);
        } else {
          store_channels(turned.data, zeros, least(channels, p_.in_channels - first),
                         target + first / kTileElements * area_ * kBlockSize);
        }
      }
    }
    return true;
  }

 private:
  void turn(int64_t unit, int64_t first, int64_t channels, float* turned) const {
    const int64_t filter = unit * kTileColumns;
    const int64_t size = p_.in_channels * area_;
    const float* w = w_ + filter * size + first * area_;
    for (int k = 0; k < kTileColumns; k += kV) {
      turn_filters(w + k * size, size, p_.pool.channels - filter - k, channels * area_, turned + k,
                   kTileColumns);
    }
  }

  // A window's elements are [S][R][C].
  void store_run(const float* turned, const float* zeros, uint16_t* target) const {
    const int64_t C = p_.in_channels, R = layout_.taps_height, S = layout_.taps_width;
    const auto row = [&](int64_t element) {
      if (element >= S * R * C) return zeros;
      const int64_t c = element % C, r = element / C % R, s = element / C / R;
      return turned + ((c * R + r) * S + s) * kTileColumns;
    };
    for (int64_t pair = 0; pair < layout_.blocks * kTileRows; ++pair) {
      store_pair(row(2 * pair), row(2 * pair + 1),
                 target + pair / kTileRows * kBlockSize + pair % kTileRows * kTileElements);
    }
  }

  // 32 channels of a tap after another; channel c stands beside channel c + 16.
  void store_channels(const float* turned, const float* zeros, int64_t channels,
                      uint16_t* target) const {
    const auto row = [&](int64_t channel, int64_t tap) {
      return channel < channels ? turned + (channel * area_ + tap) * kTileColumns : zeros;
    };
    for (int64_t tap = 0; tap < area_; ++tap) {
      for (int c = 0; c < kHalf; ++c) {
        store_pair(row(c, tap), row(c + kHalf, tap), target + tap * kBlockSize + c * kTileElements);
      }
    }
  }

  const ConvActPool2dProblem& p_;
  const ImplicitGemmLayout& layout_;
  const float* w_;
  uint16_t* prepared_;
  const int64_t area_;
};

}  // namespace

int64_t implicit_gemm_prepared_size(const ConvActPool2dProblem& p) {
  const ImplicitGemmLayout layout(p, 1);
  return divide_up(p.pool.channels, kPanelFilters) * layout.blocks * kBlockSize / 2;
}

bool implicit_gemm_prepare(const ConvActPool2dProblem& p, const void* w, void* prepared,
                           int threads) {
  const ImplicitGemmLayout layout(p, 1);
  const Weights weights(p, layout, static_cast<const float*>(w), static_cast<uint16_t*>(prepared));
  const int64_t units = weights.units();
  return in_parallel(units, static_cast<int>(least(threads, units)),
                     [&](Range range) { return weights.run(range); });
}

}  // namespace CMF_ISA
}  // namespace cmf

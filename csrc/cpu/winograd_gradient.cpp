#include "cpu/winograd_gradient.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

// Transformed tiles of a super-block: they lie in the shared cache. Each adds to the sums of the
// weight gradient once, which costs as much as a third of C tiles do.
constexpr int64_t kSuperBytes = 12 << 20;
constexpr int64_t kLeastTiles = 112;
constexpr int64_t kMostTiles = 448;
constexpr int64_t kFrameBytes = 192 << 10;
constexpr int kMostLanes = 64;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

int64_t phase_taps(int64_t kernel, int64_t stride, int64_t phase) {
  return kernel <= phase ? 0 : divide_up(kernel - phase, stride);
}

GradientAxis make_axis(int64_t length, int64_t out, int64_t stride, int64_t pad, int outputs) {
  GradientAxis axis = {};
  axis.first = pad / stride;
  axis.last = (pad + length - 1) / stride;
  axis.tiles = divide_up(axis.last - axis.first + 1, outputs);
  axis.stride = stride;
  axis.pad = pad;
  axis.length = length;
  axis.out = out;
  return axis;
}

}  // namespace

bool GradientPlan::prepare(const ConvActPool2dProblem& p, int outputs, int taps,
                           bool wants_weights) {
  outputs_ = outputs;
  taps_ = taps;
  vertical_ = make_axis(p.height, p.pool.height, p.stride_height, p.pad_height, outputs);
  horizontal_ = make_axis(p.width, p.pool.width, p.stride_width, p.pad_width, outputs);
  const int64_t of_phase = divide_up(p.in_channels, kV);
  const int64_t room = p.stride_height * p.stride_width * of_phase;
  filters_ = p.pool.channels;
  k_blocks_ = divide_up(filters_, kV);
  if (room > INT32_MAX / 64 || k_blocks_ > INT32_MAX / 64) return false;
  if (!vector_.allocate(room) || !group_.allocate(room)) return false;
  if (!filter_index_.allocate(2 * k_blocks_)) return false;
  // a phase without taps too: its gradient is 0
  for (int64_t i = 0; i < p.stride_height; ++i) {
    for (int64_t j = 0; j < p.stride_width; ++j) {
      for (int64_t first = 0; first < p.in_channels; first += kV) {
        const bool second = first / kV % 2 == 1;
        if (second) {
          group_.data[groups_ - 1].vectors = 2;
        } else {
          group_.data[groups_++] = PhaseGroup{vectors_, 1};
        }
        PhaseVector& vector = vector_.data[vectors_++];
        vector.phase_height = static_cast<int32_t>(i);
        vector.phase_width = static_cast<int32_t>(j);
        vector.first = static_cast<int32_t>(first);
        vector.lanes = static_cast<int32_t>(least(p.in_channels - first, kV));
        vector.short_height = phase_taps(p.kernel_height, p.stride_height, i) < taps;
        vector.short_width = phase_taps(p.kernel_width, p.stride_width, j) < taps;
      }
    }
  }
  for (int64_t k = 0; k < k_blocks_; ++k) {
    filter_index_.data[k] = static_cast<int32_t>(k);
    filter_index_.data[k_blocks_ + k] = static_cast<int32_t>(least(filters_ - k * kV, kV));
  }
  frame_lanes_ = static_cast<int>(least(k_blocks_ * kV, kMostLanes));

  const int64_t alpha = outputs + taps - 1;
  const int64_t tile_bytes =
      (k_blocks_ + (wants_weights ? vectors_ : 0)) * kV * alpha * alpha * int64_t(sizeof(float));
  const int64_t tiles = least(most(kSuperBytes / tile_bytes, kLeastTiles), kMostTiles);
  strips_ = p.pool.batch * vertical_.tiles;
  const int64_t together = most(tiles / horizontal_.tiles, 1);
  // what fits one and a half is not cut
  supers_ = strips_ * 2 <= together * 3 ? 1 : divide_up(strips_, together);
  const int64_t most_strips = divide_up(strips_, supers_);
  most_tiles_ = most_strips * horizontal_.tiles;
  const int64_t row_bytes = frame_columns() * frame_lanes_ * int64_t(sizeof(float));
  run_strips_ = most((kFrameBytes / row_bytes - (taps - 1)) / outputs, 1);
  run_strips_ = least(run_strips_, least(most_strips, vertical_.tiles));
  most_runs_ = most_strips;  // at least a strip each
  return true;
}

bool GradientBlock::prepare(const GradientPlan& plan) {
  return run_.allocate(plan.most_runs_) && chunk_.allocate(plan.most_tiles_ / kChunk + 2);
}

void GradientBlock::list(const GradientPlan& plan, int64_t super) {
  strip_first_ = plan.strips_ * super / plan.supers_;
  const int64_t end = plan.strips_ * (super + 1) / plan.supers_;
  const int64_t down = plan.vertical_.tiles;
  const int64_t across = plan.horizontal_.tiles;
  runs_ = 0;
  for (int64_t strip = strip_first_; strip < end;) {
    TileRun& run = run_.data[runs_++];
    run.n = strip / down;
    run.strip_first = strip % down;
    const int64_t count = least(plan.run_strips_, least(end - strip, down - run.strip_first));
    run.strip_last = run.strip_first + count;
    run.tile = (strip - strip_first_) * across;
    strip += count;
  }
  const int64_t tiles = (end - strip_first_) * across;
  chunks_ = static_cast<int>(divide_up(tiles, kChunk));
  for (int64_t i = 0; i <= chunks_; ++i) chunk_.data[i] = tiles * i / chunks_;
}

}  // namespace CMF_ISA
}  // namespace cmf

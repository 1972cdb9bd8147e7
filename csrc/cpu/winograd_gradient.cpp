#include "cpu/winograd_gradient.h"

#include "cpu/integers.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

// Transformed tiles of a super-block: they lie in the shared cache. Each adds to the sums of the
// weight gradient once, which costs as much as a third of C tiles do.
constexpr int64_t kSuperBytes = 6 << 20;
// Of one thread: they lie in its part of the shared cache, and are as many as threads often are.
constexpr int64_t kOwnSuperBytes = 3 << 20;
constexpr int64_t kOwnLeastTiles = 56;
constexpr int64_t kOwnSupers = 16;
constexpr int64_t kLeastTiles = 112;
constexpr int64_t kMostTiles = 448;
constexpr int64_t kFrameBytes = 384 << 10;
constexpr int kMostLanes = 64;

// For phases whose first taps are begin .. end - 1.
GradientAxis make_axis(const ConvActPool2dProblem& p, bool vertical, int64_t begin, int64_t end,
                       int outputs) {
  GradientAxis axis = {};
  axis.stride = vertical ? p.stride_height : p.stride_width;
  axis.pad = vertical ? p.pad_height : p.pad_width;
  axis.length = vertical ? p.height : p.width;
  axis.out = vertical ? p.pool.height : p.pool.width;
  axis.first = (axis.pad - end + axis.stride) / axis.stride;
  axis.last = (axis.pad + axis.length - 1 - begin) / axis.stride;
  axis.tiles = divide_up(axis.last - axis.first + 1, outputs);
  return axis;
}

// For a part of a filter. What lies before the first output sees nothing; and frames reach over all
// of z, also where this part's taps see nothing but padding.
GradientAxis make_part_axis(const ConvActPool2dProblem& p, bool vertical, int64_t begin,
                            int outputs, int taps) {
  GradientAxis axis = make_axis(p, vertical, begin, begin + 1, outputs);
  axis.last = most(axis.last, axis.out - 1);
  axis.first = least(most(axis.first, 0), least(taps - 1, axis.last));
  axis.tiles = divide_up(axis.last - axis.first + 1, outputs);
  return axis;
}

// Frames reach over all of z.
bool covers(const GradientAxis& axis, int taps) {
  return axis.tiles > 0 && axis.first < taps && axis.last >= axis.out - 1;
}

}  // namespace

int choose_phase_sets(const ConvActPool2dProblem& p, int outputs, int taps,
                      PhaseSet (&sets)[kPhaseSets]) {
  const WinogradParts parts = winograd_parts(p);
  if (parts.count() > 1) {  // at stride 1
    int count = 0;
    for (int64_t i = 0; i < parts.height * taps; i += taps) {
      for (int64_t j = 0; j < parts.width * taps; j += taps) {
        sets[count++] = PhaseSet{{i, j}, {i + 1, j + 1}, i > 0 || j > 0};
      }
    }
    return count;
  }
  const PhaseSet all = {{0, 0}, {p.stride_height, p.stride_width}};
  // phases before this one have their first pixel a position later
  const int64_t cut[2] = {p.pad_height % p.stride_height, p.pad_width % p.stride_width};
  // as multiply-adds of a vector of filters in one tile: to expand and transform dz, and products
  const int64_t transform = p.pool.channels_last ? 20000 : 30000;
  const int64_t alpha = outputs + taps - 1;
  const int64_t product = 2 * alpha * alpha * kV * divide_up(p.in_channels, kV) * kV;
  const auto cost = [&](const PhaseSet& set) {
    const GradientAxis vertical = make_axis(p, true, set.begin[0], set.end[0], outputs);
    const GradientAxis horizontal = make_axis(p, false, set.begin[1], set.end[1], outputs);
    const int64_t phases = (set.end[0] - set.begin[0]) * (set.end[1] - set.begin[1]);
    return vertical.tiles * horizontal.tiles * (transform + phases * product);
  };
  int count = 0;
  int64_t together = 0;
  bool possible = true;
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const PhaseSet set = {{i ? cut[0] : 0, j ? cut[1] : 0},
                            {i ? all.end[0] : cut[0], j ? all.end[1] : cut[1]}};
      if (set.begin[0] == set.end[0] || set.begin[1] == set.end[1]) continue;
      possible &= covers(make_axis(p, true, set.begin[0], set.end[0], outputs), taps) &&
                  covers(make_axis(p, false, set.begin[1], set.end[1], outputs), taps);
      together += cost(set);
      sets[count++] = set;
    }
  }
  if (possible && together < cost(all)) return count;
  sets[0] = all;
  return 1;
}

bool GradientPlan::prepare(const ConvActPool2dProblem& p, const PhaseSet& set, int outputs,
                           int taps, bool wants_weights, bool apart) {
  outputs_ = outputs;
  taps_ = taps;
  adds_ = set.adds;
  if (winograd_parts(p).count() > 1) {
    vertical_ = make_part_axis(p, true, set.begin[0], outputs, taps);
    horizontal_ = make_part_axis(p, false, set.begin[1], outputs, taps);
  } else {
    vertical_ = make_axis(p, true, set.begin[0], set.end[0], outputs);
    horizontal_ = make_axis(p, false, set.begin[1], set.end[1], outputs);
  }
  const int64_t of_phase = divide_up(p.in_channels, kV);
  const int64_t room = p.stride_height * p.stride_width * of_phase;
  filters_ = p.pool.channels;
  k_blocks_ = divide_up(filters_, kV);
  if (room > INT32_MAX / 64 || k_blocks_ > INT32_MAX / 64) return false;
  if (!vector_.allocate(room) || !group_.allocate(room)) return false;
  if (!filter_index_.allocate(2 * k_blocks_)) return false;
  // a phase without taps too: its gradient is 0
  for (int64_t i = set.begin[0]; i < set.end[0]; ++i) {
    for (int64_t j = set.begin[1]; j < set.end[1]; ++j) {
      for (int64_t first = 0; first < p.in_channels; first += kV) {
        const bool second = first / kV % 2 == 1;
        if (second) {
          group_.data[groups_ - 1].vectors = 2;
        } else {
          group_.data[groups_++] = PhaseGroup{vectors_, 1};
        }
        PhaseVector& vector = vector_.data[vectors_++];
        vector.tap_height = static_cast<int32_t>(i);
        vector.tap_width = static_cast<int32_t>(j);
        vector.first = static_cast<int32_t>(first);
        vector.lanes = static_cast<int32_t>(least(p.in_channels - first, kV));
        vector.short_height = taps_from(p.kernel_height, p.stride_height, i) < taps;
        vector.short_width = taps_from(p.kernel_width, p.stride_width, j) < taps;
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
  strips_ = p.pool.batch * vertical_.tiles;
  const int64_t share = divide_up(strips_ * horizontal_.tiles, kOwnSupers);
  const int64_t some = apart ? most(least(kOwnSuperBytes / tile_bytes, share), kOwnLeastTiles)
                             : most(kSuperBytes / tile_bytes, kLeastTiles);
  const int64_t tiles = least(some, kMostTiles);
  const int64_t together = most(tiles / horizontal_.tiles, 1);
  supers_ = divide_up(strips_, together);
  // one needs no sums that outlive it: what fits one and a half is not cut, nor what takes no more
  // memory as a whole than two of the pieces and their sums
  const int64_t strip_bytes = horizontal_.tiles * tile_bytes;
  const int64_t sum_bytes =
      wants_weights ? k_blocks_ * vectors_ * kV * kV * alpha * alpha * int64_t(sizeof(float)) : 0;
  if (!apart &&
      (strips_ * 2 <= together * 3 ||
       (wants_weights && strips_ * strip_bytes <= 2 * together * strip_bytes + sum_bytes))) {
    supers_ = 1;
  }
  const int64_t most_strips = divide_up(strips_, supers_);
  most_tiles_ = most_strips * horizontal_.tiles;
  const int64_t row_bytes = frame_columns() * frame_lanes_ * int64_t(sizeof(float));
  run_strips_ = most((kFrameBytes / row_bytes - (taps - 1)) / outputs, 1);
  run_strips_ = least(run_strips_, least(most_strips, vertical_.tiles));
  most_runs_ = most_strips;  // at least a strip each
  return true;
}

int64_t GradientPlan::most_chunks() const { return GradientBlock::chunks_of(most_tiles_); }

bool GradientBlock::prepare(const GradientPlan& plan) {
  return run_.allocate(plan.most_runs_) && chunk_.allocate(plan.most_chunks() + 1);
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
  chunks_ = static_cast<int>(chunks_of(tiles));
  for (int64_t i = 0; i <= chunks_; ++i) chunk_.data[i] = tiles * i / chunks_;
}

}  // namespace CMF_ISA
}  // namespace cmf

// A group's channels of some rows of an image are copied into a frame of their own, with zeros
// around them. There a row of a patch's taps lies side by side, and the patches of a row of pixels
// at equal distances: the tiles read them where they are. In the image itself the pixels of a group
// lie so far apart that they share a few sets of the first cache.
#include "cpu/grouped_patches.h"

#include <string.h>

#include "cpu/activated_tiles.h"
#include "cpu/groups.h"
#include "cpu/row_products.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kFrameBytes = INT64_C(1) << 16;
constexpr int64_t kMostDepth = 1024;  // of a filter: a sum of more rounds more

class GroupedPatches {
 public:
  GroupedPatches(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads)
      : p_(p),
        t_(t),
        groups_(p),
        channels_(groups_.problem().in_channels),
        filters_(groups_.problem().pool.channels),
        panels_(divide_up(filters_, int64_t(kTileLanes))),
        depth_(channels_ * p.kernel_height * p.kernel_width),
        frame_row_(((p.pool.width - 1) * p.stride_width + p.kernel_width) * channels_),
        quick_(quick_activation(p.pool)),
        pixel_(y_pixel(p.pool, t)),
        threads_(product_threads(p, depth_, threads)) {
    const int64_t rows = most(kFrameBytes / (frame_row_ * 4), p.kernel_height);
    const int64_t together = (rows - p.kernel_height) / p.stride_height + 1;
    bands_ = static_cast<int>(divide_up(p.pool.height, together));
    frame_rows_ =
        (divide_up(p.pool.height, int64_t(bands_)) - 1) * p.stride_height + p.kernel_height;
  }

  bool run() {
    const int64_t columns = panels_ * kTileLanes;
    if (!bias_.allocate(p_.groups * columns)) return false;
    const float* bias = static_cast<const float*>(t_.bias);
    for (int64_t i = 0; i < p_.groups * columns; ++i) {
      const int64_t k = i % columns;
      bias_.data[i] = bias && k < filters_ ? bias[i / columns * filters_ + k] : 0.0f;
    }
    return in_parallel(p_.pool.batch * bands_ * p_.groups, threads_, [&](Range units) {
      Scratch<float> frame;
      if (!frame.allocate(frame_rows_ * frame_row_)) return false;
      ActivatedTiles activated(p_.pool);
      for (int64_t i = units.first; i < units.last; ++i) {
        fill(unit(i), frame.data);
        multiply(unit(i), frame.data, activated,
                 i + 1 < units.last ? pixels_of(unit(i + 1)) : Pixels{});
      }
      activated.finish();
      return true;
    });
  }

 private:
  // Some rows of an image's output, of one group.
  struct Unit {
    int64_t image;
    int64_t group;
    Range rows;
  };
  Unit unit(int64_t i) const {
    const int64_t band = i / p_.groups;
    return Unit{band / bands_, i % p_.groups,
                part_of(p_.pool.height, static_cast<int>(band % bands_), bands_)};
  }

  // The rows of the image that they see, beyond its borders too.
  Range rows_of_x(const Unit& unit) const {
    return Range{unit.rows.first * p_.stride_height - p_.pad_height,
                 (unit.rows.last - 1) * p_.stride_height - p_.pad_height + p_.kernel_height};
  }
  const float* group_of_x(const Unit& unit) const {
    return static_cast<const float*>(t_.x) + unit.image * p_.height * p_.width * p_.image_channels +
           unit.group * channels_;
  }

  // Those that there are.
  struct Pixels {
    const float* first = nullptr;
    int64_t count = 0;
  };
  Pixels pixels_of(const Unit& unit) const {
    const Range rows = rows_of_x(unit);
    const int64_t top = least(most(rows.first, 0), p_.height);
    const int64_t bottom = most(least(rows.last, p_.height), top);
    return Pixels{group_of_x(unit) + top * p_.width * p_.image_channels, (bottom - top) * p_.width};
  }

  void fill(const Unit& unit, float* frame) const {
    const float* x = group_of_x(unit);
    const Range rows = rows_of_x(unit);
    const int64_t columns = frame_row_ / channels_;
    const int64_t left = least(p_.pad_width, columns);
    const int64_t right = most(least(columns, p_.pad_width + p_.width), left);
    for (int64_t row = rows.first; row < rows.last; ++row, frame += frame_row_) {
      if (row < 0 || row >= p_.height) {
        clear(frame, frame_row_);
        continue;
      }
      clear(frame, left * channels_);
      const float* source = x + row * p_.width * p_.image_channels;
      for (int64_t column = left; column < right; ++column, source += p_.image_channels) {
        copy(source, frame + column * channels_);
      }
      clear(frame + right * channels_, frame_row_ - right * channels_);
    }
  }

  static void clear(float* target, int64_t count) {
    memset(target, 0, static_cast<size_t>(count) * sizeof(float));
  }
  void copy(const float* source, float* target) const {
    for (int64_t c = 0; c < channels_; c += kV) {
      const int lanes = static_cast<int>(least(channels_ - c, kV));
      store_lanes<float>(target + c, load_lanes<float>(source + c, lanes), lanes);
    }
  }

  // `next`: what the next frame is filled with.
  void multiply(const Unit& unit, const float* frame, ActivatedTiles& activated,
                Pixels next) const {
    PointwiseTile tile;
    tile.a_row = p_.stride_width * channels_;
    tile.runs = p_.kernel_height;
    tile.channels = p_.kernel_width * channels_;
    tile.a_skip = frame_row_ - round_up(tile.channels, kV);
    tile.row_bias = nullptr;
    tile.y_row = pixel_;
    tile.act = quick_;
    tile.past_caches = false;
    const EvenParts parts = TileRows{p_.pool.width}.parts();
    const int64_t tiles = panels_ * (unit.rows.last - unit.rows.first) * parts.count();
    const int64_t steps = tile.runs * divide_up(tile.channels, int64_t(kV));
    tile.ahead = next.first;
    tile.ahead_pair = p_.image_channels;
    tile.ahead_step = 2 * p_.image_channels;
    tile.ahead_count = static_cast<int>(divide_up(next.count, 2 * tiles * steps));
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t k = panel * kTileLanes, first = (unit.group * panels_ + panel) * kTileLanes;
      tile.b = static_cast<const float*>(t_.prepared) + first * depth_;
      tile.bias = bias_.data + first;
      tile.columns = static_cast<int>(least(filters_ - k, kTileLanes));
      for (int64_t row = unit.rows.first; row < unit.rows.last; ++row) {
        const int64_t line = (unit.image * p_.pool.height + row) * p_.pool.width;
        for (int64_t i = 0; i < parts.count(); ++i) {
          const int count = static_cast<int>(parts.size(i));
          tile.a = frame + (row - unit.rows.first) * p_.stride_height * frame_row_ +
                   parts.first(i) * tile.a_row;
          const int64_t offset = (line + parts.first(i)) * pixel_ + unit.group * filters_ + k;
          tile.y = static_cast<float*>(t_.y) + offset;
          tile.residual = t_.residual ? static_cast<const float*>(t_.residual) + offset : nullptr;
          const PointwiseKernel kernel =
              pointwise_kernel_for(count, tile.columns > kV ? 2 : 1, true);
          if (quick_.kind == QuickActivation::kAfterwards) {
            activated.run(tile, count, kernel);
          } else {
            kernel(tile);
          }
          tile.ahead += steps * tile.ahead_count * tile.ahead_step;
        }
      }
    }
  }

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const Groups groups_;
  const int64_t channels_;  // of a group
  const int64_t filters_;
  const int64_t panels_;
  const int64_t depth_;
  const int64_t frame_row_;  // floats
  const QuickActivation quick_;
  const int64_t pixel_;  // of y
  const int threads_;
  int bands_;
  int64_t frame_rows_;
  Scratch<float> bias_;  // [group][panel][kTileLanes]
};

}  // namespace

const char* grouped_patches_refusal(const ConvActPool2dProblem& p) {
  if (const char* reason = groups_refusal(p)) return reason;
  if (!p.x_channels_last || !p.pool.channels_last || p.pool.pool != Pool::kNone) {
    return "takes groups in channels_last and without a pooling alone";
  }
  if (p.dilation_height != 1 || p.dilation_width != 1) return "takes groups at dilation 1 alone";
  if (p.in_channels / p.groups * p.kernel_height * p.kernel_width > kMostDepth) {
    return "takes groups of up to 1024 values a filter";
  }
  return nullptr;
}

bool grouped_patches_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t,
                             int threads) {
  return GroupedPatches(p, t, threads).run();
}

}  // namespace CMF_ISA
}  // namespace cmf

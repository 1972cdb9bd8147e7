#include "cpu/patches_pack.h"

#include "cpu/turn_matrix.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

// A run of `channels` of a row of the tile, of which [first, last) lie in the image, at
// source[first] and so on: what is outside is 0.
void pack_run(const float* source, int64_t channels, int64_t first, int64_t last, int64_t rows,
              float* target) {
  for (int64_t c = 0; c < channels; c += kV, target += rows * kV) {
    const int64_t end = least(channels, c + kV);
    if (first <= c && end <= last) {
      store<float>(target, load_lanes<float>(source + c, static_cast<int>(end - c)));
      continue;
    }
    store<float>(target, Vec<float>{});
    for (int64_t i = most(c, first); i < least(end, last); ++i) target[i - c] = source[i];
  }
}

}  // namespace

// The rows of x that rows [first, last) of the convolution's output see.
Range Patches::input_rows(Range rows) const {
  const int64_t first = rows.first * p_.stride_height - p_.pad_height;
  const int64_t last = (rows.last - 1) * p_.stride_height - p_.pad_height +
                       (p_.kernel_height - 1) * p_.dilation_height + 1;
  const int64_t top = least(most(first, 0), p_.height);
  return Range{top, most(least(last, p_.height), top)};
}

int64_t Patches::scratch_floats(int64_t pixels) const {
  if (p_.x_channels_last || runs_.by_plane) return 0;
  const int64_t rows = divide_up(pixels - 1, p_.pool.width) + 1;  // they may begin anywhere in one
  const int64_t seen =
      (rows - 1) * p_.stride_height + (p_.kernel_height - 1) * p_.dilation_height + 1;
  return least(seen, p_.height) * p_.width * p_.in_channels;
}

// The image of `pixels`; an NCHW one as far as they see it.
Patches::Image Patches::image_of(Range pixels, float* scratch) const {
  const int64_t area = p_.pool.height * p_.pool.width;
  const int64_t n = pixels.first / area;
  const float* image = x_ + n * p_.in_channels * p_.height * p_.width;
  if (p_.x_channels_last || runs_.by_plane) return Image{image, 0};
  const int64_t first = n * area;
  const Range seen = input_rows(
      Range{(pixels.first - first) / p_.pool.width, divide_up(pixels.last - first, p_.pool.width)});
  const int64_t plane = p_.height * p_.width;
  turn_matrix(image + seen.first * p_.width, plane, p_.in_channels,
              (seen.last - seen.first) * p_.width, scratch, p_.in_channels);
  return Image{scratch, seen.first};
}

// The rows of taps of which some pixel of `pixels` sees the image; all where the runs are planes'.
Range Patches::kernel_rows(Range pixels) const {
  if (runs_.by_plane) return Range{0, p_.kernel_height};
  const int64_t area = p_.pool.height * p_.pool.width;
  const int64_t n = pixels.first / area;
  if (pixels.last > (n + 1) * area) return Range{0, p_.kernel_height};
  const int64_t top = (pixels.first - n * area) / p_.pool.width;
  const int64_t bottom = (pixels.last - 1 - n * area) / p_.pool.width;
  const int64_t above = p_.pad_height - bottom * p_.stride_height;
  const int64_t below = p_.height + p_.pad_height - top * p_.stride_height;
  const int64_t first =
      least(above > 0 ? divide_up(above, p_.dilation_height) : 0, p_.kernel_height);
  const int64_t last =
      least(below > 0 ? divide_up(below, p_.dilation_height) : 0, p_.kernel_height);
  return Range{first, most(last, first)};
}

Range Patches::runs(Range pixels) const {
  if (runs_.by_plane) return Range{0, runs_.count};
  const Range rows = kernel_rows(pixels);
  return Range{rows.first * runs_.of_row, rows.last * runs_.of_row};
}

// packed [count][channels / kV][rows][kV], of which the patch at (y, x) is one row; of
// `kernel_rows` alone, but where the runs are planes'.
void Patches::pack_patch(const Image& image, int64_t y, int64_t x, Range kernel_rows, int64_t rows,
                         float* packed) const {
  const int64_t C = p_.in_channels, step = round_up(runs_.channels, kV) * rows;
  const int64_t down = p_.dilation_height * p_.width;
  const int64_t top = y + kernel_rows.first * p_.dilation_height;
  const int64_t bottom = y + (kernel_rows.last - 1) * p_.dilation_height;
  const int64_t right = x + (p_.kernel_width - 1) * p_.dilation_width;
  if (!runs_.by_plane) packed += kernel_rows.first * runs_.of_row * step;
  if (top >= 0 && bottom < p_.height && x >= 0 && right < p_.width) {  // nearly all of them
    if (runs_.by_plane) {
      const RunSteps steps = {C, p_.height * p_.width, p_.kernel_height, down};
      pack_inside(image.data + y * p_.width + x, steps, rows, packed);
    } else {
      const RunSteps steps = {kernel_rows.last - kernel_rows.first, down * C, runs_.of_row,
                              p_.dilation_width * C};
      pack_inside(image.data + ((top - image.first) * p_.width + x) * C, steps, rows, packed);
    }
    return;
  }
  if (runs_.by_plane) {
    const int64_t first = least(most(-x, 0), runs_.across);
    const int64_t last = most(least(p_.width - x, runs_.across), first);
    for (int64_t run = 0; run < runs_.count; ++run, packed += step) {
      const int64_t row = y + run % p_.kernel_height * p_.dilation_height;
      const bool inside = row >= 0 && row < p_.height;
      const float* source = image.data + (run / p_.kernel_height * p_.height + row) * p_.width + x;
      pack_run(source, runs_.channels, first, inside ? last : first, rows, packed);
    }
    return;
  }
  for (int64_t r = kernel_rows.first; r < kernel_rows.last; ++r) {
    const int64_t row = y + r * p_.dilation_height;
    const bool inside = row >= 0 && row < p_.height;
    for (int64_t s = 0; s < runs_.of_row; ++s, packed += step) {
      const int64_t column = x + s * p_.dilation_width;
      const int64_t first = least(most(-column, 0), runs_.across);
      const int64_t last = inside ? most(least(p_.width - column, runs_.across), first) : first;
      const float* source = image.data + ((row - image.first) * p_.width + column) * C;
      pack_run(source, runs_.channels, first * C, last * C, rows, packed);
    }
  }
}

void Patches::pack_inside(const float* source, const RunSteps& steps, int64_t rows,
                          float* packed) const {
  const int64_t whole = runs_.channels / kV * kV;
  const int rest = static_cast<int>(runs_.channels - whole);
  for (int64_t i = 0; i < steps.outer; ++i, source += steps.outer_step) {
    const float* run = source;
    for (int64_t j = 0; j < steps.inner; ++j, run += steps.inner_step) {
      for (int64_t c = 0; c < whole; c += kV, packed += rows * kV) {
        store<float>(packed, load<float>(run + c));
      }
      if (rest == 0) continue;
      store<float>(packed, load_lanes<float>(run + whole, rest));
      packed += rows * kV;
    }
  }
}

void Patches::pack(Range pixels, float* scratch, float* packed) const {
  const ActPool2dProblem& pool = p_.pool;
  const int64_t area = pool.height * pool.width;
  const TileRows tiles = {pixels.last - pixels.first};
  int64_t column = pixels.first % pool.width;
  int64_t row = pixels.first / pool.width % pool.height;
  int64_t pixel = pixels.first;
  Image image = image_of(Range{pixel, least(pixels.last, (pixel / area + 1) * area)}, scratch);
  for (int i = 0; i < tiles.tiles(); ++i) {
    const Range tile = tiles.tile(i);
    const int64_t count = tile.last - tile.first;
    const Range taps = kernel_rows(Range{pixels.first + tile.first, pixels.first + tile.last});
    float* target = packed + tile.first * runs_.step();
    for (int64_t j = 0; j < count; ++j, target += kV) {
      if (row == pool.height) {
        row = 0;
        image = image_of(Range{pixel, least(pixels.last, pixel + area)}, scratch);
      }
      pack_patch(image, row * p_.stride_height - p_.pad_height,
                 column * p_.stride_width - p_.pad_width, taps, count, target);
      ++pixel;
      if (++column < pool.width) continue;
      column = 0;
      ++row;
    }
  }
}

void Patches::pack_columns(Range pixels, int64_t run, Range channels, float* columns) const {
  const int64_t C = p_.in_channels;
  const int64_t down = run / runs_.of_row * p_.dilation_height - p_.pad_height;
  const int64_t right = run % runs_.of_row * p_.dilation_width - p_.pad_width;
  const int64_t count = pixels.last - pixels.first;
  const int64_t second = count * kV;  // panel
  int64_t column = pixels.first % p_.pool.width;
  int64_t row = pixels.first / p_.pool.width % p_.pool.height;
  const float* image =
      x_ + pixels.first / p_.pool.width / p_.pool.height * p_.height * p_.width * C;
  for (int64_t i = 0; i < count; ++i, columns += kV) {
    const int64_t y = row * p_.stride_height + down, x = column * p_.stride_width + right;
    // what of the run's taps lies in the image
    const int64_t first = most(-x, 0) * C, last = least(p_.width - x, runs_.across) * C;
    if (y < 0 || y >= p_.height || last <= channels.first || first >= channels.last) {
      store<float>(columns, Vec<float>{});
      store<float>(columns + second, Vec<float>{});
    } else {
      const float* source = image + (y * p_.width + x) * C;
      const int64_t middle = least(channels.first + kV, channels.last);
      pack_run(source + channels.first, middle - channels.first, first - channels.first,
               last - channels.first, 1, columns);
      if (middle < channels.last) {
        pack_run(source + middle, channels.last - middle, first - middle, last - middle, 1,
                 columns + second);
      }
    }
    if (++column < p_.pool.width) continue;
    column = 0;
    if (++row < p_.pool.height) continue;
    row = 0;
    image += p_.height * p_.width * C;
  }
}

RawFilters patch_filters(const ConvActPool2dProblem& p, const float* w, bool w_channels_last,
                         const float* w_scale) {
  const int64_t area = p.kernel_height * p.kernel_width;
  // the values as [slow][fast], which come out as [fast][slow]
  const bool by_plane = PatchRuns(p).by_plane;
  int64_t slow = 1, fast = p.in_channels * area;
  if (w_channels_last == by_plane) {
    slow = by_plane ? area : p.in_channels;
    fast = by_plane ? p.in_channels : area;
  }
  return RawFilters{w, w_scale, p.pool.channels, slow, fast};
}

}  // namespace CMF_ISA
}  // namespace cmf

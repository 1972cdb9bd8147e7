#include "cpu/implicit_gemm_layout.h"

#include <string.h>

#include "cpu/parts.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;
constexpr int kHalf = kTileElements / 2;

// Phases of a stride that `taps` taps, `dilation` apart, read.
int64_t phases_of(int64_t taps, int64_t dilation, int64_t stride) {
  if (dilation % stride == 0) return 1;
  const int64_t reach = (taps - 1) * dilation + 1;
  return least(reach, stride);
}

void store_pairs(PartBits first, PartBits second, uint16_t* target) {
  const PartBits pairs = pair_parts(first, second);
  memcpy(target, &pairs, sizeof pairs);
}

// Channels i .. i + kV - 1 of a block's lower half and of its upper one -> their pairs, each part.
CMF_HOST_DEVICE void store_channels(V lower, V upper, int64_t part, uint16_t* target) {
  const Parts low = cut_parts(lower), high = cut_parts(upper);
  for (int i = 0; i < kParts; ++i) store_pairs(low.bits[i], high.bits[i], target + i * part);
}

// Columns of a phase of the frame that are columns of x.
Range columns_of(const ConvActPool2dProblem& p, int64_t phase) {
  return Range{divide_up(most(p.pad_width - phase, 0), p.stride_width),
               divide_up(most(p.pad_width + p.width - phase, 0), p.stride_width)};
}

}  // namespace

bool merges_window(const ConvActPool2dProblem& p) {
  const int64_t area = p.kernel_height * p.kernel_width;
  return p.in_channels < kTileElements && area > 1 && p.dilation_height == 1 &&
         p.dilation_width == 1;
}

ImplicitGemmLayout::ImplicitGemmLayout(const ConvActPool2dProblem& p, int64_t rows)
    : merged(merges_window(p)), taps_height(p.kernel_height), taps_width(p.kernel_width) {
  const int64_t across = (taps_width - 1) * p.dilation_width;
  const int64_t down = (taps_height - 1) * p.dilation_height;
  run = taps_height * p.in_channels;
  channel_blocks = divide_up(p.in_channels, kTileElements);
  phases_height = phases_of(taps_height, p.dilation_height, p.stride_height);
  phases_width = phases_of(taps_width, p.dilation_width, p.stride_width);
  if (merged) {
    blocks = divide_up(taps_width * run, kTileElements);
    position = p.stride_width * run;
    pitch = divide_up((p.pool.width - 1) * p.stride_width + across + 1, p.stride_width);
    plane_rows = rows;
    plane = rows * pitch * position;
    // a tile beyond the last position, and what a window's last block reads beyond it
    part = round_up(plane + 2 * kTileRows * position + blocks * kTileElements, kTileElements);
    frame = kParts * part;
    return;
  }
  blocks = channel_blocks * taps_height * taps_width;
  position = kTileElements;
  // A row's zeros on the right are those of the next row on the left.
  pitch = p.pool.width;
  const int64_t wanted = p.pool.width + across / p.stride_width;
  for (int64_t phase = 0; phase < phases_width; ++phase) {
    const Range columns = columns_of(p, phase);
    pitch = most(pitch, most(least(columns.last, wanted), wanted - columns.first));
  }
  plane_rows = rows + down / p.stride_height;
  plane = (plane_rows * pitch + across / p.stride_width + 1) * position;
  part = phases_height * phases_width * plane;
  frame = channel_blocks * kParts * part + 2 * kTileRows * position;
}

int64_t ImplicitGemmLayout::offset(const ConvActPool2dProblem& p, int64_t block) const {
  if (merged) return block * kTileElements;
  const int64_t taps = taps_height * taps_width;
  const int64_t row = block % taps / taps_width * p.dilation_height;
  const int64_t column = block % taps % taps_width * p.dilation_width;
  const int64_t phase = row % p.stride_height * phases_width + column % p.stride_width;
  return block / taps * kParts * part + phase * plane +
         (row / p.stride_height * pitch + column / p.stride_width) * position;
}

void ImplicitGemmFrame::fill(const float* image, int64_t z_first, int64_t rows, float* scratch,
                             uint16_t* frame) const {
  if (layout_.merged) {
    fill_merged(image, z_first, rows, scratch, frame);
  } else {
    fill_blocks(image, z_first, rows, frame);
  }
}

void ImplicitGemmFrame::clear(uint16_t* frame) const {
  const auto zero = [](uint16_t* first, int64_t count) {
    memset(first, 0, static_cast<size_t>(count) * sizeof(uint16_t));
  };
  const int64_t parts = layout_.merged ? kParts : layout_.channel_blocks * kParts;
  for (int64_t i = 0; i < parts; ++i, frame += layout_.part) {
    if (layout_.merged) {
      zero(frame + layout_.plane, layout_.part - layout_.plane);
      continue;
    }
    for (int64_t phase = 0; phase < layout_.phases_height * layout_.phases_width; ++phase) {
      uint16_t* plane = frame + phase * layout_.plane;
      const Range columns = columns_of(p_, phase % layout_.phases_width);
      const int64_t left = columns.first, end = least(columns.last, layout_.pitch);
      for (int64_t row = 0; row < layout_.plane_rows;
           ++row, plane += layout_.pitch * kTileElements) {
        zero(plane, left * kTileElements);
        zero(plane + end * kTileElements, (layout_.pitch - end) * kTileElements);
      }
      const int64_t rows = layout_.plane_rows * layout_.pitch * kTileElements;
      zero(plane, layout_.plane - rows);
    }
  }
}

void ImplicitGemmFrame::fill_merged(const float* image, int64_t z_first, int64_t rows,
                                    float* scratch, uint16_t* frame) const {
  const int64_t C = p_.in_channels, run = layout_.run, count = row_elements();
  const int64_t columns = layout_.pitch * p_.stride_width;  // of x, from -pad on
  const int64_t first = most(0, -p_.pad_width);
  const int64_t last = least(p_.width, columns - p_.pad_width);
  const int64_t x_column = p_.x_channels_last ? C : 1;
  const int64_t x_channel = p_.x_channels_last ? 1 : p_.height * p_.width;
  memset(scratch, 0, static_cast<size_t>(scratch_floats()) * sizeof(float));
  for (int64_t z = 0; z < rows; ++z) {
    for (int64_t r = 0; r < layout_.taps_height; ++r) {
      const int64_t h = (z_first + z) * p_.stride_height - p_.pad_height + r;
      const bool inside = h >= 0 && h < p_.height;
      const float* row = image + h * p_.width * x_column;
      for (int64_t c = 0; c < C; ++c) {
        const float* source = row + c * x_channel;
        float* target = scratch + p_.pad_width * run + r * C + c;
        if (inside) {
          for (int64_t w = first; w < last; ++w) target[w * run] = source[w * x_column];
        } else {
          for (int64_t w = first; w < last; ++w) target[w * run] = 0;
        }
      }
    }
    uint16_t* target = frame + z * count;
    for (int64_t i = 0; i < count; i += kV) {
      const Parts parts = cut_parts(load<float>(scratch + i));
      for (int k = 0; k < kParts; ++k) {
        const auto narrow = __builtin_convertvector(parts.bits[k] >> 16, VectorTypes<float>::Short);
        memcpy(target + k * layout_.part + i, &narrow, sizeof narrow);
      }
    }
  }
}

void ImplicitGemmFrame::fill_blocks(const float* image, int64_t z_first, int64_t rows,
                                    uint16_t* frame) const {
  const int64_t reach = (layout_.taps_height - 1) * p_.dilation_height;
  const int64_t x_rows = (rows - 1) * p_.stride_height + reach + 1;
  const int64_t x_row = p_.x_channels_last ? p_.width * p_.in_channels : p_.width;
  for (int64_t i = 0; i < x_rows; ++i) {
    const int64_t phase = i % p_.stride_height;
    if (phase >= layout_.phases_height) continue;
    const int64_t h = z_first * p_.stride_height - p_.pad_height + i;
    uint16_t* row = frame + phase * layout_.phases_width * layout_.plane +
                    i / p_.stride_height * layout_.pitch * kTileElements;
    for (int64_t block = 0; block < layout_.channel_blocks; ++block) {
      uint16_t* target = row + block * kParts * layout_.part;
      if (h >= 0 && h < p_.height) {
        p_.x_channels_last ? fill_pixels(image + h * x_row, block, target)
                           : fill_planes(image + h * x_row, block, target);
        continue;
      }
      const size_t bytes = static_cast<size_t>(layout_.pitch) * kTileBytes;
      for (int64_t plane = 0; plane < layout_.phases_width; ++plane) {
        for (int k = 0; k < kParts; ++k) {
          memset(target + plane * layout_.plane + k * layout_.part, 0, bytes);
        }
      }
    }
  }
}

// A row of x [W][C].
void ImplicitGemmFrame::fill_pixels(const float* row, int64_t block, uint16_t* target) const {
  const int64_t first = block * kTileElements;
  const int64_t channels = least(p_.in_channels - first, kTileElements);
  const int64_t stride = p_.stride_width;
  for (int64_t phase = 0; phase < layout_.phases_width; ++phase) {
    const Range columns = columns_of(p_, phase);
    const int64_t begin = columns.first, end = least(columns.last, layout_.pitch);
    const float* source = row + (begin * stride + phase - p_.pad_width) * p_.in_channels + first;
    uint16_t* pixel = target + phase * layout_.plane + begin * kTileElements;
    for (int64_t i = begin; i < end; ++i) {
      if (channels == kTileElements) {
        for (int c = 0; c < kHalf; c += kV) {
          store_channels(load<float>(source + c), load<float>(source + kHalf + c), layout_.part,
                         pixel + 2 * c);
        }
      } else {
        float padded[kTileElements] = {};
        memcpy(padded, source, static_cast<size_t>(channels) * sizeof(float));
        for (int c = 0; c < kHalf; c += kV) {
          store_channels(load<float>(padded + c), load<float>(padded + kHalf + c), layout_.part,
                         pixel + 2 * c);
        }
      }
      source += stride * p_.in_channels;
      pixel += kTileElements;
    }
  }
}

// A row of every channel of x [C][H][W]: blocks of channels by columns are turned round.
void ImplicitGemmFrame::fill_planes(const float* row, int64_t block, uint16_t* target) const {
  const int64_t first = block * kTileElements;
  const int64_t channels = p_.in_channels - first;
  const int64_t plane = p_.height * p_.width;
  const int64_t stride = p_.stride_width;
  for (int64_t w = 0; w < p_.width; w += kV) {
    const int columns = static_cast<int>(least(p_.width - w, kV));
    for (int c = 0; c < kHalf; c += kV) {
      V lower[kV], upper[kV];
      for (int i = 0; i < kV; ++i) {
        const float* source = row + (first + c + i) * plane + w;
        lower[i] = c + i < channels ? load_lanes<float>(source, columns) : V{};
        upper[i] =
            c + i + kHalf < channels ? load_lanes<float>(source + kHalf * plane, columns) : V{};
      }
      transpose_block<float>(lower);
      transpose_block<float>(upper);
      for (int i = 0; i < columns; ++i) {
        const int64_t column = w + i + p_.pad_width;
        const int64_t phase = column % stride, at = column / stride;
        if (phase >= layout_.phases_width || at >= layout_.pitch) continue;
        store_channels(lower[i], upper[i], layout_.part,
                       target + phase * layout_.plane + at * kTileElements + 2 * c);
      }
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

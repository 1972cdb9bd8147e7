// Depthwise convolution of NHWC rows: vectors run over the channels. A tile of output pixels is in
// registers, and every input pixel that reaches it is loaded once. Where a few channels are a
// group, with as many filters, once for each of them, into all lanes of the group.
#pragma once

#include "cpu/depthwise.h"
#include "cpu/parts.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kTileRows = 2;
constexpr int kTileColumns = 4;

// What stays the same for a whole call.
struct PixelKernel {
  const ConvActPool2dProblem& p;
  int64_t y_pixel;      // elements from a pixel of the output to the next
  int64_t y_row;        // and from a row to the next
  int group;            // channels of a group
  int64_t filter_step;  // elements from a tap to the next: the channels, rounded up
  const float* filter;  // [R, S][group][filter_step]
  const float* bias;    // [filter_step]
  const float* zeros;   // [filter_step]: the pixels beside the image
  QuickActivation act;
  bool past_caches;
};

// Rows p_first .. p_first + rows - 1 of the output.
struct PixelRows {
  const float* x;  // the image
  float* y;        // the first row's first pixel
  int64_t p_first;
  int rows;
};

CMF_HOST_DEVICE void store_pixel(const PixelKernel& k, float* target, Vec<float> value, int lanes) {
  if (lanes < kLanes<float>) {
    store_partial<float>(target, value, lanes);
  } else if (k.past_caches) {
    stream(target, value);
  } else {
    store<float>(target, value);
  }
}

// Tiles from column columns.first on, up to columns.last; channels channels.first .. last - 1.
// How many channels are a group: then each of them goes to all its lanes in turn.
enum class Group { kOne, kUpToFour, kMore };

// `pixel`: the channels of a vector; `member`: which of its group; `lanes_of`: where that lies.
template <Group kGroup>
CMF_HOST_DEVICE Vec<float> load_member(const float* pixel, int lanes, int member,
                                       Mask<float> lanes_of) {
  // a group that is a vector
  if (kGroup == Group::kMore && kLanes<float> == 8) return broadcast(pixel[member]);
  const Vec<float> value = load_lanes<float>(pixel, lanes);
  if (kGroup == Group::kOne) return value;
  return kGroup == Group::kUpToFour ? permute_quads(value, lanes_of) : permute(value, lanes_of);
}

// kEdge: taps may lie beside the image, the last tile and the last vector may be short.
template <int kSize, int kStride, int kRows, bool kEdge, Group kGroup>
__attribute__((noinline)) void pixel_tiles(const PixelKernel& k, const PixelRows& out,
                                           Range columns, Range channels) {
  typedef Vec<float> V;
  constexpr int kDown = (kRows - 1) * kStride + kSize;
  constexpr int kAcross = (kTileColumns - 1) * kStride + kSize;
  const ConvActPool2dProblem& p = k.p;
  const int64_t C = p.in_channels;
  const int group = kGroup == Group::kOne ? 1 : k.group;
  Mask<float> firsts = {};  // the lanes of the groups' first channels
  for (int lane = 0; lane < kLanes<float>; ++lane) firsts[lane] = lane / group * group;
  const int64_t h = out.p_first * kStride - p.pad_height;
  for (int64_t q = columns.first; q < columns.last; q += kTileColumns) {
    const int64_t w = q * kStride - p.pad_width;
    const float* rows[kDown];
    const float* pixels[kEdge ? kDown : 1][kEdge ? kAcross : 1];
#pragma GCC unroll 16
    for (int j = 0; j < kDown; ++j) {
      const bool inside = h + j >= 0 && h + j < p.height;
      rows[j] = inside ? out.x + ((h + j) * p.width + w) * C : nullptr;
      for (int a = 0; kEdge && a < kAcross; ++a) {
        const bool beside = !inside || w + a < 0 || w + a >= p.width;
        pixels[j][a] = beside ? k.zeros : rows[j] + a * C;
      }
    }
    float* y = out.y + q * k.y_pixel;
    const int64_t count = columns.last - q;
    for (int64_t c = channels.first; c < channels.last; c += kLanes<float>) {
      const int64_t left = channels.last - c;
      const int lanes = kEdge && left < kLanes<float> ? static_cast<int>(left) : kLanes<float>;
      V sums[kRows][kTileColumns];
      const V bias = load<float>(k.bias + c);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
        for (int b = 0; b < kTileColumns; ++b) sums[i][b] = bias;
      }
      const float* filter = k.filter + c;
#pragma GCC unroll 1
      for (int r = 0, member = 0; r < kSize;) {
        const Mask<float> lanes_of = firsts + member;
        V weights[kSize];
#pragma GCC unroll 16
        for (int s = 0; s < kSize; ++s)
          weights[s] = load<float>(filter + s * group * k.filter_step);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          const int j = r + i * kStride;
          if (!kEdge && !rows[j]) continue;
          if (i == kRows - 1 && r >= kSize - kStride * kRows && member == 0 && rows[j]) {
            // the rows that the next tiles down will read for the first time
            const float* ahead = rows[j] + kRows * kStride * p.width * C + c;
#pragma GCC unroll 16
            for (int a = 0; a < kTileColumns * kStride; ++a)
              __builtin_prefetch(ahead + a * C, 0, 2);
          }
#pragma GCC unroll 16
          for (int a = 0; a < kAcross; ++a) {
            V value = load_member<kGroup>(kEdge ? pixels[j][a] + c : rows[j] + a * C + c,
                                          kEdge ? lanes : kLanes<float>, member, lanes_of);
            keep_in_register(value);
#pragma GCC unroll 16
            for (int b = 0; b < kTileColumns; ++b) {
              const int s = a - b * kStride;
              if (s >= 0 && s < kSize) sums[i][b] += value * weights[s];
            }
          }
        }
        filter += k.filter_step;
        if (++member < group) continue;
        filter += (kSize - 1) * group * k.filter_step;
        member = 0;
        ++r;
      }
      k.act.each<kRows * kTileColumns>(&sums[0][0]);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
        for (int b = 0; b < kTileColumns; ++b) {
          if (kEdge && b >= count) continue;
          store_pixel(k, y + i * k.y_row + b * k.y_pixel + c, sums[i][b], lanes);
        }
      }
    }
  }
}

// Any filter, stride and dilation.
inline void any_pixels(const PixelKernel& k, const PixelRows& out, Range columns, Range channels) {
  typedef Vec<float> V;
  const ConvActPool2dProblem& p = k.p;
  const int64_t C = p.in_channels;
  for (int64_t q = columns.first; q < columns.last; q += kTileColumns) {
    const int count =
        columns.last - q < kTileColumns ? static_cast<int>(columns.last - q) : kTileColumns;
    for (int64_t c = channels.first; c < channels.last; c += kLanes<float>) {
      const int64_t left = channels.last - c;
      const int lanes = left < kLanes<float> ? static_cast<int>(left) : kLanes<float>;
      for (int i = 0; i < out.rows; ++i) {
        V sums[kTileColumns];
        for (int b = 0; b < kTileColumns; ++b) sums[b] = load<float>(k.bias + c);
        const float* filter = k.filter + c;
        for (int64_t r = 0; r < p.kernel_height; ++r) {
          const int64_t h =
              (out.p_first + i) * p.stride_height - p.pad_height + r * p.dilation_height;
          if (h < 0 || h >= p.height) {
            filter += p.kernel_width * k.filter_step;
            continue;
          }
          const float* row = out.x + h * p.width * C + c;
          for (int64_t s = 0; s < p.kernel_width; ++s, filter += k.filter_step) {
            const V weight = load<float>(filter);
            for (int b = 0; b < kTileColumns; ++b) {
              const int64_t w = (q + b) * p.stride_width - p.pad_width + s * p.dilation_width;
              if (w < 0 || w >= p.width) continue;
              sums[b] += weight * load_lanes<float>(row + w * C, lanes);
            }
          }
        }
        float* y = out.y + i * k.y_row + q * k.y_pixel + c;
        for (int b = 0; b < count; ++b) store_pixel(k, y + b * k.y_pixel, k.act(sums[b]), lanes);
      }
    }
  }
}

typedef void (*PixelTiles)(const PixelKernel& k, const PixelRows& out, Range columns,
                           Range channels);

// The loops for a filter; null: any_pixels.
struct PixelLoops {
  PixelTiles inside[kTileRows];  // by rows - 1
  PixelTiles edge[kTileRows];
};

template <int kSize, int kStride, Group kGroup = Group::kOne>
CMF_HOST_DEVICE PixelLoops pixel_loops() {
  return PixelLoops{
      {pixel_tiles<kSize, kStride, 1, false, kGroup>,
       pixel_tiles<kSize, kStride, 2, false, kGroup>},
      {pixel_tiles<kSize, kStride, 1, true, kGroup>, pixel_tiles<kSize, kStride, 2, true, kGroup>}};
}

// Whether a kernel's loops are unrolled: 3, 5 or 7 taps each way.
CMF_HOST_DEVICE bool is_square(const ConvActPool2dProblem& p) {
  return p.dilation_height == 1 && p.dilation_width == 1 && p.stride_height == p.stride_width &&
         p.stride_width <= 2 && p.kernel_height == p.kernel_width &&
         (p.kernel_width == 3 || p.kernel_width == 5 || p.kernel_width == 7);
}

// Channels of a group.
CMF_HOST_DEVICE int group_size(const ConvActPool2dProblem& p) {
  return static_cast<int>(p.in_channels / p.groups);
}

// `p`: of the rows, `group`: how many of their channels are a group.
CMF_HOST_DEVICE PixelLoops pixel_loops(const ConvActPool2dProblem& p, int group) {
  if (!is_square(p)) return PixelLoops{};
  const bool one = p.stride_width == 1;
  if (group > 4) return one ? pixel_loops<3, 1, Group::kMore>() : pixel_loops<3, 2, Group::kMore>();
  if (group > 1) {
    return one ? pixel_loops<3, 1, Group::kUpToFour>() : pixel_loops<3, 2, Group::kUpToFour>();
  }
  if (p.kernel_width == 3) return one ? pixel_loops<3, 1>() : pixel_loops<3, 2>();
  if (p.kernel_width == 5) return one ? pixel_loops<5, 1>() : pixel_loops<5, 2>();
  return one ? pixel_loops<7, 1>() : pixel_loops<7, 2>();
}

// Some columns, from the first of a tile on, and all channels of up to kTileRows rows. Column by
// column with all their channels, so that both tensors are walked in the order of their addresses.
inline void pixel_rows(const PixelKernel& k, const PixelLoops& loops, const PixelRows& out,
                       Range columns, int64_t channels) {
  const ConvActPool2dProblem& p = k.p;
  if (!loops.edge[0]) return any_pixels(k, out, columns, Range{0, channels});
  const PixelTiles inside = loops.inside[out.rows - 1];
  const PixelTiles edge = loops.edge[out.rows - 1];
  // tiles first .. last - 1 see nothing beside the image
  constexpr int64_t kT = kTileColumns;
  const int64_t pad = (p.pad_width + kT * p.stride_width - 1) / (kT * p.stride_width);
  const int64_t first = pad > columns.first / kT ? pad : columns.first / kT;
  const int64_t reach = p.width + p.pad_width - p.kernel_width - (kT - 1) * p.stride_width;
  int64_t last = reach < 0 ? 0 : reach / (kT * p.stride_width) + 1;
  if (last > columns.last / kT) last = columns.last / kT;
  const int64_t whole = channels / kLanes<float> * kLanes<float>;
  if (first >= last || whole == 0) return edge(k, out, columns, Range{0, channels});
  edge(k, out, Range{columns.first, first * kT}, Range{0, channels});
  inside(k, out, Range{first * kT, last * kT}, Range{0, whole});
  if (whole < channels) edge(k, out, Range{first * kT, last * kT}, Range{whole, channels});
  edge(k, out, Range{last * kT, columns.last}, Range{0, channels});
}

}  // namespace CMF_ISA
}  // namespace cmf

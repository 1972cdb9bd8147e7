#include "cpu/pointwise_pack.h"

#include "cpu/pointwise_tile.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

// Where a pixel of the convolution's output lies in x, in pixels from the image's first on.
int64_t source_pixel(const ConvActPool2dProblem& p, int64_t pixel) {
  if (p.stride_height == 1 && p.stride_width == 1) return pixel;
  return pixel / p.pool.width * p.stride_height * p.width + pixel % p.pool.width * p.stride_width;
}

// source_pixel of `count` pixels from `first` on.
void source_pixels(const ConvActPool2dProblem& p, int64_t first, int count, int64_t* sources) {
  int64_t source = source_pixel(p, first);
  int64_t left = p.pool.width - first % p.pool.width;  // pixels of the row
  for (int j = 0; j < count; ++j) {
    sources[j] = source;
    source += p.stride_width;
    if (--left == 0) {
      left = p.pool.width;
      source += p.stride_height * p.width - left * p.stride_width;
    }
  }
}

// Row `row` of its tile: channel c goes to packed[(c / kV · rows + row) · kV + c % kV].
template <Change kChange>
void pack_row(const float* source, int64_t channels, int64_t rows, int64_t row, float* packed,
              const float* scale = nullptr, const float* shift = nullptr) {
  float* target = packed + row * kV;
  for (int64_t c = 0; c < channels; c += kV, target += rows * kV) {
    const int lanes = static_cast<int>(least(channels - c, kV));
    Vec<float> value = load_lanes<float>(source + c, lanes);
    if constexpr (kChange == Change::kNormalised) {
      value = normalised(value, load_lanes<float>(scale + c, lanes),
                         load_lanes<float>(shift + c, lanes));
    } else if constexpr (kChange == Change::kScaled) {
      value = value * load_lanes<float>(scale + c, lanes);
    }
    store<float>(target, value);
  }
}

// `count` <= kV pixels of kV channels of an NCHW image, of which `lanes` exist; scale and shift are
// those channels'.
void pack_block(const ConvActPool2dProblem& p, const float* planes, const float* scale,
                const float* shift, int lanes, int64_t pixel, int count, float* packed) {
  const int64_t plane = p.height * p.width;
  const bool adjacent = p.stride_height == 1 && p.stride_width == 1;
  Vec<float> block[kV];
  if (adjacent) {
    for (int lane = 0; lane < kV; ++lane) {
      const float* source = planes + lane * plane + pixel;
      block[lane] = lane < lanes ? load_lanes<float>(source, count) : Vec<float>{};
    }
    transpose_block<float>(block);
  } else {
    int64_t sources[kV];
    source_pixels(p, pixel, count, sources);
    for (int j = 0; j < count; ++j) {
      float* target = packed + j * kV;
      for (int lane = 0; lane < lanes; ++lane) target[lane] = planes[lane * plane + sources[j]];
      for (int lane = lanes; lane < kV; ++lane) target[lane] = 0.0f;
    }
    if (!scale) return;
    for (int j = 0; j < count; ++j) block[j] = load<float>(packed + j * kV);
  }
  if (scale) {
    const Vec<float> scales = load_lanes<float>(scale, lanes);
    const Vec<float> shifts = shift ? load_lanes<float>(shift, lanes) : Vec<float>{};
    for (int j = 0; j < count; ++j) {
      block[j] = shift ? normalised(block[j], scales, shifts) : block[j] * scales;
    }
  }
  for (int j = 0; j < count; ++j) store<float>(packed + j * kV, block[j]);
}

}  // namespace

void pack_filter_tile(const ConvActPool2dProblem& p, const float* w, const float* w_scale,
                      Range tile, float* packed) {
  const int64_t C = p.in_channels, rows = tile.last - tile.first;
  for (int64_t k = tile.first; k < tile.last; ++k) {
    const float* filter = w + k * C;
    const float scale = w_scale ? w_scale[k] : 1.0f;
    float* target = packed + (k - tile.first) * kV;
    for (int64_t c = 0; c < C; c += kV, target += rows * kV) {
      const int lanes = static_cast<int>(least(C - c, kV));
      store<float>(target, load_lanes<float>(filter + c, lanes) * scale);
    }
  }
}

bool fills_columns(int64_t pixels) {
  return round_up(pixels, pixels % kTileLanes > kV ? kTileLanes : kV) * 7 <= pixels * 8;
}

bool filters_are_rows(const ConvActPool2dProblem& p) {
  return !p.x_channels_last && !p.pool.channels_last && p.pool.pool == Pool::kNone &&
         fills_columns(p.pool.height * p.pool.width);
}

int64_t packed_weights_size(const ConvActPool2dProblem& p) {
  return filters_are_rows(p) ? p.pool.channels * round_up(p.in_channels, kV)
                             : round_up(p.pool.channels, kTileLanes) * p.in_channels;
}

void pack_weights(const ConvActPool2dProblem& p, const float* w, float* packed, int threads) {
  const int64_t C = p.in_channels;
  if (!filters_are_rows(p)) {
    pack_filters(RawFilters{w, nullptr, p.pool.channels, 1, C}, packed, threads);
    return;
  }
  const TileRows rows = {p.pool.channels};
  in_parallel(rows.tiles(), p.pool.channels * C < kLeastWeights ? 1 : threads, [&](Range tiles) {
    for (int64_t i = tiles.first; i < tiles.last; ++i) {
      const Range tile = rows.tile(static_cast<int>(i));
      pack_filter_tile(p, w, nullptr, tile, packed + tile.first * round_up(C, kV));
    }
    return true;
  });
}

void pack_turned_weights(const ConvActPool2dProblem& p, const float* w, bool as_columns,
                         float* packed, int threads) {
  const int64_t C = p.in_channels, K = p.pool.channels;
  const int64_t filters = round_up(K, kV);
  const TileRows rows = {C};
  if (K * C < kLeastWeights) threads = 1;
  if (!as_columns) {
    in_parallel(rows.tiles(), threads, [&](Range tiles) {
      for (int64_t i = tiles.first; i < tiles.last; ++i) {
        const Range tile = rows.tile(static_cast<int>(i));
        const int64_t count = tile.last - tile.first;
        for (int64_t k = 0; k < filters; ++k) {
          float* target = packed + tile.first * filters + k / kV * kV * count + k % kV;
          for (int64_t j = 0; j < count; ++j) {
            target[j * kV] = k < K ? w[k * C + tile.first + j] : 0.0f;
          }
        }
      }
      return true;
    });
    return;
  }
  in_parallel(divide_up(C, kTileLanes), threads, [&](Range panels) {
    for (int64_t c = panels.first * kTileLanes; c < panels.last * kTileLanes; c += kV) {
      const int lanes = static_cast<int>(C - c < kV ? most(C - c, 0) : kV);
      float* target = packed + c / kTileLanes * kTileLanes * K + c % kTileLanes;
      for (int64_t k = 0; k < K; ++k, target += kTileLanes) {
        store<float>(target, lanes ? load_lanes<float>(w + k * C + c, lanes) : Vec<float>{});
      }
    }
    return true;
  });
}

void pack_tile(const ConvActPool2dProblem& p, const PointwiseInput& input, Range pixels,
               float* packed) {
  const int64_t C = p.in_channels;
  const int64_t area = p.pool.height * p.pool.width;
  const int64_t image_size = p.image_channels * p.height * p.width;
  const int64_t count = pixels.last - pixels.first;
  if (p.x_channels_last) {
    for (int64_t row = 0; row < count; ++row) {
      const int64_t n = (pixels.first + row) / area;
      const int64_t pixel = (pixels.first + row) % area;
      const float* source = input.x + n * image_size + source_pixel(p, pixel) * p.image_channels;
      const float* scale = input.scale_at(p, n, 0);
      if (input.shift) {
        pack_row<Change::kNormalised>(source, C, count, row, packed, scale, input.shift);
      } else if (scale) {
        pack_row<Change::kScaled>(source, C, count, row, packed, scale);
      } else {
        pack_row<Change::kNone>(source, C, count, row, packed);
      }
    }
    return;
  }
  // a few planes at a time: more are more streams than the hardware follows
  for (int64_t c = 0; c < C; c += kV, packed += count * kV) {
    const int lanes = C - c < kV ? static_cast<int>(C - c) : kV;
    for (int64_t row = 0; row < count;) {
      const int64_t n = (pixels.first + row) / area;
      const int64_t pixel = (pixels.first + row) % area;
      int64_t together = least(count - row, kV);
      if (area - pixel < together) together = area - pixel;
      pack_block(p, input.x + n * image_size + c * p.height * p.width, input.scale_at(p, n, c),
                 input.shift_at(c), lanes, pixel, static_cast<int>(together), packed + row * kV);
      row += together;
    }
  }
}

void pack_pixels(const ConvActPool2dProblem& p, const PointwiseInput& input, Range pixels,
                 float* packed) {
  const int64_t step = round_up(p.in_channels, kV);
  const TileRows rows = {pixels.last - pixels.first};
  for (int i = 0; i < rows.tiles(); ++i) {
    const Range tile = rows.tile(i);
    pack_tile(p, input, Range{pixels.first + tile.first, pixels.first + tile.last},
              packed + tile.first * step);
  }
}

void pack_columns(const ConvActPool2dProblem& p, const PointwiseInput& input, int64_t n,
                  Range pixels, float* packed) {
  const int64_t plane = p.height * p.width;
  const float* image = input.x + n * p.image_channels * plane;
  const int count = static_cast<int>(pixels.last - pixels.first);
  const bool adjacent = p.stride_height == 1 && p.stride_width == 1;
  int64_t sources[kTileLanes];
  source_pixels(p, pixels.first, count, sources);
  for (int64_t c = 0; c < p.in_channels; ++c, packed += kTileLanes) {
    const float* source = image + c * plane;
    if (adjacent) {
      source += pixels.first;
      for (int j = 0; j < kTileLanes; j += kV) {
        const int lanes = count - j < kV ? count - j : kV;
        store<float>(packed + j, lanes > 0 ? load_lanes<float>(source + j, lanes) : Vec<float>{});
      }
    } else {
      for (int j = 0; j < count; ++j) packed[j] = source[sources[j]];
      for (int j = count; j < kTileLanes; ++j) packed[j] = 0.0f;
    }
    if (!input.scale) continue;
    const Vec<float> scale = broadcast(*input.scale_at(p, n, c));
    const Vec<float> shift = input.shift ? broadcast(input.shift[c]) : Vec<float>{};
    for (int j = 0; j < kTileLanes; j += kV) {
      const Vec<float> value = load<float>(packed + j);
      store<float>(packed + j, input.shift ? normalised(value, scale, shift) : value * scale);
    }
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

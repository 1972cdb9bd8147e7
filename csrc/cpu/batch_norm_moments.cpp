#include "cpu/batch_norm_moments.h"

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kBlock = 2048;  // elements of a plane: 8 KiB, read twice
constexpr int64_t kBlockPixels = 16;
constexpr int kVectors = 4;  // channels of a block of pixels: four vectors

// In float64, for what float32 has no room for: sums and squares beyond its range, infinities.
__attribute__((noinline)) Moments exact_moments(const float* x, int64_t stride, int64_t count) {
  Moments moments = {0, 0};
  for (int64_t i = 0; i < count; ++i) moments.sum += x[i * stride];
  const double mean = moments.sum / static_cast<double>(count);
  for (int64_t i = 0; i < count; ++i) {
    const double deviation = x[i * stride] - mean;
    moments.squares += deviation * deviation;
  }
  return moments;
}

// From the sum and the squares of x - shift. `shift` is about the mean, so that little is taken off.
CMF_HOST_DEVICE Moments about(float shift, float sum, float squares, double count,
                              double reciprocal) {
  const double d = sum;
  return {count * shift + d, squares - d * d * reciprocal};
}

Moments block_moments(const float* x, int64_t count) {
  constexpr int kV = kLanes<float>;
  const int64_t fours = count / (4 * kV) * (4 * kV);
  Vec<float> a[4] = {};
  for (int64_t i = 0; i < fours; i += 4 * kV) {
    for (int j = 0; j < 4; ++j) a[j] += load<float>(x + i + j * kV);
  }
  int64_t i = fours;
  for (; i + kV <= count; i += kV) a[0] += load<float>(x + i);
  if (i < count) a[1] += load_partial<float>(x + i, static_cast<int>(count - i));
  const float shift =
      reduce_add<float>((a[0] + a[1]) + (a[2] + a[3])) / static_cast<float>(count);

  Vec<float> sum[4] = {};
  Vec<float> squares[4] = {};
  for (i = 0; i < fours; i += 4 * kV) {
    for (int j = 0; j < 4; ++j) {
      const Vec<float> deviation = load<float>(x + i + j * kV) - shift;
      sum[j] += deviation;
      squares[j] += deviation * deviation;
    }
  }
  for (; i + kV <= count; i += kV) {
    const Vec<float> deviation = load<float>(x + i) - shift;
    sum[0] += deviation;
    squares[0] += deviation * deviation;
  }
  if (i < count) {
    const Vec<float> deviation =
        load_partial<float>(x + i, static_cast<int>(count - i), shift) - shift;
    sum[1] += deviation;
    squares[1] += deviation * deviation;
  }
  const double n = static_cast<double>(count);
  const Moments moments =
      about(shift, reduce_add<float>((sum[0] + sum[1]) + (sum[2] + sum[3])),
            reduce_add<float>((squares[0] + squares[1]) + (squares[2] + squares[3])), n, 1 / n);
  return __builtin_isfinite(moments.squares) ? moments : exact_moments(x, 1, count);
}

// Shift, sum and squares of x - shift, of `kCount` vectors of channels.
template <int kCount>
CMF_HOST_DEVICE void pixel_block(const float* x, int64_t pixels, int64_t channels, int lanes,
                                 float* shifts, float* sums, float* squares) {
  constexpr int kV = kLanes<float>;
  Vec<float> shift[kCount] = {};
  for (int64_t i = 0; i < pixels; ++i) {
    for (int j = 0; j < kCount; ++j) {
      shift[j] += load_lanes<float>(x + i * channels + j * kV, lanes);
    }
  }
  Vec<float> sum[kCount] = {};
  Vec<float> square[kCount] = {};
  for (int j = 0; j < kCount; ++j) shift[j] *= 1 / static_cast<float>(pixels);
  for (int64_t i = 0; i < pixels; ++i) {
    for (int j = 0; j < kCount; ++j) {
      const Vec<float> deviation =
          load_lanes<float>(x + i * channels + j * kV, lanes) - shift[j];
      sum[j] += deviation;
      square[j] += deviation * deviation;
    }
  }
  for (int j = 0; j < kCount; ++j) {
    store<float>(shifts + j * kV, shift[j]);
    store<float>(sums + j * kV, sum[j]);
    store<float>(squares + j * kV, square[j]);
  }
}

// Adds the moments of `pixels` more pixels to those of `before`.
CMF_HOST_DEVICE void add_pixels(const float* x, int64_t before, int64_t pixels, int64_t channels,
                                int64_t width, double* sums, double* squares) {
  constexpr int kV = kLanes<float>;
  float shift[kVectors * kV], sum[kVectors * kV], square[kVectors * kV];
  if (width == kVectors * kV) {
    pixel_block<kVectors>(x, pixels, channels, kV, shift, sum, square);
  } else {
    for (int64_t c = 0; c < width; c += kV) {
      const int lanes = width - c < kV ? static_cast<int>(width - c) : kV;
      pixel_block<1>(x + c, pixels, channels, lanes, shift + c, sum + c, square + c);
    }
  }
  const double count = static_cast<double>(pixels);
  const double others = static_cast<double>(before);
  const double reciprocal = 1 / count;
  double scale = 0;
  if (before) scale = 1 / (count * others * (count + others));
  for (int64_t c = 0; c < width; ++c) {
    const Moments more = about(shift[c], sum[c], square[c], count, reciprocal);
    const double apart = count * sums[c] - others * more.sum;
    squares[c] += more.squares + apart * apart * scale;
    sums[c] += more.sum;
  }
}

}  // namespace

Moments plane_moments(const float* x, int64_t count) {
  Moments total = {0, 0};
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t block = count - i < kBlock ? count - i : kBlock;
    const Moments moments = block_moments(x + i, block);
    if (i == 0) {
      total = moments;
    } else {
      merge_moments(total, static_cast<double>(i), moments, static_cast<double>(block));
    }
  }
  return total;
}

void pixel_moments(const float* x, int64_t pixels, int64_t channels, int64_t first, int64_t last,
                   double* sums, double* squares) {
  constexpr int64_t kWidth = kVectors * kLanes<float>;
  for (int64_t c = 0; c < last - first; ++c) sums[c] = squares[c] = 0;
  for (int64_t i = 0; i < pixels; i += kBlockPixels) {
    const int64_t block = pixels - i < kBlockPixels ? pixels - i : kBlockPixels;
    for (int64_t c = first; c < last; c += kWidth) {
      const int64_t width = last - c < kWidth ? last - c : kWidth;
      add_pixels(x + i * channels + c, i, block, channels, width, sums + (c - first),
                 squares + (c - first));
    }
  }
  for (int64_t c = 0; c < last - first; ++c) {
    if (__builtin_isfinite(squares[c])) continue;
    const Moments exact = exact_moments(x + first + c, channels, pixels);
    sums[c] = exact.sum;
    squares[c] = exact.squares;
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

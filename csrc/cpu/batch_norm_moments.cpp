#include "cpu/batch_norm_moments.h"

#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kBlock = 2048;  // elements of a plane: 8 KiB, read twice
constexpr int64_t kBlockPixels = 16;
constexpr int kVectors = 4;  // channels of a block of pixels: four vectors

// In float64, for what float32 has no room for: sums and squares beyond its range, infinities.
__attribute__((noinline)) Moments exact_moments(const float* x, int64_t count, int64_t runs,
                                                int64_t stride) {
  Moments moments = {0, 0};
  for (int64_t run = 0; run < runs; ++run) {
    for (int64_t i = 0; i < count; ++i) moments.sum += x[run * stride + i];
  }
  const double mean = moments.sum / static_cast<double>(count * runs);
  for (int64_t run = 0; run < runs; ++run) {
    for (int64_t i = 0; i < count; ++i) {
      const double deviation = x[run * stride + i] - mean;
      moments.squares += deviation * deviation;
    }
  }
  return moments;
}

// From the sum and the squares of x - shift. `shift` is about the mean, so that little is taken
// off.
CMF_HOST_DEVICE Moments about(float shift, float sum, float squares, double count,
                              double reciprocal) {
  const double d = sum;
  return {count * shift + d, squares - d * d * reciprocal};
}

// One long run: four sums, for an addition takes four cycles.
struct Sums {
  Vec<float> sum[4] = {};
  Vec<float> squares[4] = {};

  CMF_HOST_DEVICE void add(int j, Vec<float> deviation) {
    sum[j] += deviation;
    squares[j] += deviation * deviation;
  }
};

Moments block_moments(const float* x, int64_t count, int64_t runs, int64_t stride) {
  constexpr int kV = kLanes<float>;
  const int64_t fours = count / (4 * kV) * (4 * kV);
  Vec<float> total[4] = {};
  for (int64_t run = 0; run < runs; ++run) {
    const float* values = x + run * stride;
    int64_t i = 0;
    for (; i < fours; i += 4 * kV) {
      for (int j = 0; j < 4; ++j) total[j] += load<float>(values + i + j * kV);
    }
    for (; i + kV <= count; i += kV) total[0] += load<float>(values + i);
    if (i < count) total[1] += load_partial<float>(values + i, static_cast<int>(count - i));
  }
  const double n = static_cast<double>(count * runs);
  const float shift = reduce_add<float>((total[0] + total[1]) + (total[2] + total[3])) /
                      static_cast<float>(count * runs);

  Sums sums;
  for (int64_t run = 0; run < runs; ++run) {
    const float* values = x + run * stride;
    int64_t i = 0;
    for (; i < fours; i += 4 * kV) {
      for (int j = 0; j < 4; ++j) sums.add(j, load<float>(values + i + j * kV) - shift);
    }
    for (; i + kV <= count; i += kV) sums.add(0, load<float>(values + i) - shift);
    if (i < count) {
      sums.add(1, load_partial<float>(values + i, static_cast<int>(count - i), shift) - shift);
    }
  }
  const Vec<float> sum = (sums.sum[0] + sums.sum[1]) + (sums.sum[2] + sums.sum[3]);
  const Vec<float> squares =
      (sums.squares[0] + sums.squares[1]) + (sums.squares[2] + sums.squares[3]);
  const Moments moments =
      about(shift, reduce_add<float>(sum), reduce_add<float>(squares), n, 1 / n);
  return __builtin_isfinite(moments.squares) ? moments : exact_moments(x, count, runs, stride);
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
      const Vec<float> deviation = load_lanes<float>(x + i * channels + j * kV, lanes) - shift[j];
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

Moments plane_moments(const float* x, int64_t count, int64_t runs, int64_t stride) {
  if (count <= kBlock) return block_moments(x, count, runs, stride);
  Moments total = {0, 0};
  double before = 0;
  for (int64_t run = 0; run < runs; ++run) {
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t block = count - i < kBlock ? count - i : kBlock;
      const Moments moments = block_moments(x + run * stride + i, block, 1, 0);
      const double more = static_cast<double>(block);
      if (before > 0) {
        merge_moments(&total.sum, &total.squares, before, &moments.sum, &moments.squares, more, 1);
      } else {
        total = moments;
      }
      before += more;
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
    const Moments exact = exact_moments(x + first + c, 1, pixels, channels);
    sums[c] = exact.sum;
    squares[c] = exact.squares;
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

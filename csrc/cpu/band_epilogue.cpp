#include "cpu/band_epilogue.h"

#include <string.h>

#include "cpu/quick_activation.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;

ActPool2dProblem band_problem(const ActPool2dProblem& whole, int lanes) {
  ActPool2dProblem p = whole;
  p.batch = 1;
  p.channels = p.image_channels = lanes;
  p.channels_last = true;
  return p;
}

V load_as_float(const float* source) { return load<float>(source); }
V load_as_float(const uint8_t* source) { return bit_cast<V>(load_bytes<float>(source)); }

void store_as(float* target, V value, int lanes) { store_lanes<float>(target, value, lanes); }
void store_as(uint8_t* target, V value, int lanes) {
  const Mask<float> bits = bit_cast<Mask<float>>(value);
  if (lanes == kV) {
    store_bytes<float>(target, bits);
  } else {
    store_bytes_partial<float>(target, bits, lanes);
  }
}

// What becomes of a vector on its way to y: nothing, or
struct AsItIs {
  template <class T>
  V operator()(V value, const T*, int) const {
    return value;
  }
};
// the residual's values are added, and the sums activated.
struct WithResidual {
  const float* y;
  const float* residual;  // lies as y
  QuickActivation act;

  V operator()(V value, const float* target, int lanes) const {
    return act(value + load_lanes<float>(residual + (target - y), lanes));
  }
};

// Pixels by channels -> channels by pixels: source [pixels][lanes] -> target[k · plane + pixel].
// kStreams: past the caches, whole vectors being whole lines.
template <bool kStreams, class T, class Finish>
void store_planes(const T* source, int64_t pixels, int lanes, int k_count, int64_t plane, T* target,
                  const Finish& finish) {
  for (int k = 0; k < k_count; k += kV) {
    const int filters = k_count - k < kV ? k_count - k : kV;
    for (int64_t i = 0; i < pixels; i += kV) {
      const int count = pixels - i < kV ? static_cast<int>(pixels - i) : kV;
      V block[kV];
      for (int j = 0; j < kV; ++j) {
        block[j] = j < count ? load_as_float(source + (i + j) * lanes + k) : V{};
      }
      transpose_block<float>(block);
      for (int j = 0; j < filters; ++j) {
        T* line = target + (k + j) * plane + i;
        const V value = finish(block[j], line, count);
        if constexpr (kStreams) {
          if (count == kV) {
            stream(line, value);
            continue;
          }
        }
        store_as(line, value, count);
      }
    }
  }
}

template <class T, class Finish>
void store_pixels(const T* source, int64_t pixels, int lanes, int k_count, int64_t channels,
                  T* target, const Finish& finish) {
  for (int64_t i = 0; i < pixels; ++i) {
    for (int k = 0; k < k_count; k += kV) {
      const int count = k_count - k < kV ? k_count - k : kV;
      T* place = target + i * channels + k;
      store_as(place, finish(load_as_float(source + i * lanes + k), place, count), count);
    }
  }
}

// Whether y, on a line's boundary, is more than the caches keep until it is read again.
bool streams(const ActPool2dProblem& p, const float* target) {
  constexpr int64_t kLeastBytes = 4 << 20;
  const int64_t count = p.batch * p.image_channels * p.out_height * p.out_width;
  return count * int64_t(sizeof(float)) >= kLeastBytes &&
         reinterpret_cast<uintptr_t>(target) % kLineBytes == 0;
}

// Whether a band's rows are so many whole lines of an NCHW y.
bool streams_planes(const ActPool2dProblem& p, const Band& band, const float* target) {
  return kV == kLineFloats && !p.channels_last && streams(p, target) &&
         p.out_height * p.out_width % kLineFloats == 0 &&
         band.p_first * p.out_width % kLineFloats == 0;
}

// As store_pixels where whole lines are written: K a multiple of a line, y on its boundary.
template <class Finish>
void stream_pixels(const float* source, int64_t pixels, int lanes, int k_count, int64_t channels,
                   float* target, const Finish& finish) {
  for (int64_t i = 0; i < pixels; ++i) {
    for (int k = 0; k < k_count; k += kV) {
      float* place = target + i * channels + k;
      stream(place, finish(load<float>(source + i * lanes + k), place, kV));
    }
  }
}

template <bool kStreams, class T, class Finish>
void store_either(const ActPool2dProblem& p, const Band& band, const T* source, int lanes,
                  int64_t pixel, T* target, const Finish& finish) {
  const int64_t pixels = (band.p_last - band.p_first) * p.out_width;
  const int64_t plane = p.out_height * p.out_width;
  const int64_t first = band.p_first * p.out_width;
  if (!p.channels_last) {
    store_planes<kStreams>(source, pixels, lanes, band.k_count, plane,
                           target + (band.n * p.image_channels + band.k_first) * plane + first,
                           finish);
    return;
  }
  T* start = target + (band.n * plane + first) * pixel + band.k_first;
  if constexpr (kStreams) {
    stream_pixels(source, pixels, lanes, band.k_count, pixel, start, finish);
  } else {
    store_pixels(source, pixels, lanes, band.k_count, pixel, start, finish);
  }
}

template <class Finish>
void store_finished(const ActPool2dProblem& p, const Band& band, const float* source, int lanes,
                    int64_t pixel, float* target, const Finish& finish) {
  if (streams_pixels(p, pixel, target) || streams_planes(p, band, target)) {
    store_either<true>(p, band, source, lanes, pixel, target, finish);
    fence_streams();
  } else {
    store_either<false>(p, band, source, lanes, pixel, target, finish);
  }
}

}  // namespace

bool streams_pixels(const ActPool2dProblem& p, int64_t pixel, const float* target) {
  return p.channels_last && streams(p, target) && p.channels % kLineFloats == 0 &&
         pixel % kLineFloats == 0;
}

void store_band(const ActPool2dProblem& p, const Band& band, const float* source, int lanes,
                int64_t pixel, float* target) {
  store_finished(p, band, source, lanes, pixel, target, AsItIs{});
}

void store_band(const ActPool2dProblem& p, const Band& band, const uint8_t* source, int lanes,
                int64_t pixel, uint8_t* target) {
  store_either<false>(p, band, source, lanes, pixel, target, AsItIs{});
}

const char* band_residual_refusal(const ConvActPool2dProblem& p) {
  if (p.pool.pool != Pool::kNone) return "takes no residual with a pooling";
  if (quick_activation(p.pool).kind == QuickActivation::kAfterwards) {
    return "takes a residual with activations of few instructions alone";
  }
  return nullptr;
}

BandEpilogue::BandEpilogue(const ActPool2dProblem& problem, int lanes, int64_t most_rows)
    : problem_(band_problem(problem, lanes)),
      whole_(problem),
      worker_(problem_),
      lanes_(lanes),
      most_rows_(most_rows) {}

BandEpilogue::~BandEpilogue() { free(y_); }

bool BandEpilogue::prepare() {
  if (problem_.pool == Pool::kNone) return true;
  // three arrays in one: two of floats and one of bytes
  const size_t count = static_cast<size_t>(most_rows_ * problem_.out_width * lanes_);
  // half a vector of lanes is read as a whole one
  y_ = static_cast<float*>(malloc(count * (2 * sizeof(float) + 1) + sizeof(V)));
  if (!y_) return false;
  preactivation_ = y_ + count;
  codes_ = reinterpret_cast<uint8_t*>(preactivation_ + count);
  return worker_.prepare(nullptr);
}

void BandEpilogue::pool(float* z, int64_t z_first, const Band& band,
                        const ConvForwardTensors& tensors) {
  float* y = static_cast<float*>(tensors.y);
  if (problem_.pool == Pool::kNone) {
    finish(z + (band.p_first - z_first) * problem_.width * lanes_, nullptr, band, tensors);
    return;
  }
  // the worker counts rows from the image's first: its bases lie that far before the scratch
  const int64_t row = problem_.out_width * lanes_;
  const int64_t skipped = band.p_first * row;
  const int64_t rows = band.p_last - band.p_first;
  char* codes = tensors.index ? reinterpret_cast<char*>(codes_) - skipped : nullptr;
  float* preactivation = tensors.preactivation ? preactivation_ - skipped : nullptr;
  worker_.run(z - z_first * problem_.width * lanes_, -0.0f, y_ - skipped, codes, preactivation,
              band.p_first, band.p_last, 0, rows);
  const int64_t channels = whole_.image_channels;
  store_band(whole_, band, y_, lanes_, y_pixel(whole_, tensors), y);
  if (tensors.index) {
    store_band(whole_, band, codes_, lanes_, channels, static_cast<uint8_t*>(tensors.index));
  }
  if (tensors.preactivation) {
    store_band(whole_, band, preactivation_, lanes_, channels,
               static_cast<float*>(tensors.preactivation));
  }
}

void BandEpilogue::finish(float* pooled, const uint8_t* codes, const Band& band,
                          const ConvForwardTensors& tensors) {
  if (tensors.residual) {
    float* y = static_cast<float*>(tensors.y);
    const WithResidual add = {y, static_cast<const float*>(tensors.residual),
                              quick_activation(whole_)};
    store_finished(whole_, band, pooled, lanes_, y_pixel(whole_, tensors), y, add);
    return;
  }
  const int64_t count = (band.p_last - band.p_first) * problem_.out_width * lanes_;
  if (problem_.pool != Pool::kAvg) {
    activate_row(problem_, pooled, RowBias<float>{-0.0f, nullptr}, pooled, count);
  }
  store(pooled, codes, band, tensors);
}

void BandEpilogue::store(const float* pooled, const uint8_t* codes, const Band& band,
                         const ConvForwardTensors& tensors) {
  store_band(whole_, band, pooled, lanes_, y_pixel(whole_, tensors),
             static_cast<float*>(tensors.y));
  if (codes && tensors.index) {
    store_band(whole_, band, codes, lanes_, whole_.image_channels,
               static_cast<uint8_t*>(tensors.index));
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

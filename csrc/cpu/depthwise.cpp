// Depthwise convolution with what follows it: x is read once and y written once. Without a pooling
// the activation happens in registers or, where it is long, on rows that are still in cache; with
// one, bands of the convolution's output pass through scratch memory.
#include "cpu/depthwise.h"

#include <stdlib.h>

#include "cpu/band_epilogue.h"
#include "cpu/depthwise_pixels.h"
#include "cpu/depthwise_rows.h"
#include "cpu/simd_transpose.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kBandBytes = 32768;  // of scratch that stays in the first cache
// Outputs above this are stored past the caches: their readers would not find them there anyway.
constexpr int64_t kLargeBytes = INT64_C(1) << 25;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

struct Range {
  int64_t first;
  int64_t last;
};

// Part `part` of `parts` nearly equal ones.
Range part_of(int64_t count, int part, int parts) {
  return Range{count / parts * part + (count % parts < part ? count % parts : part),
               count / parts * (part + 1) + (count % parts < part + 1 ? count % parts : part + 1)};
}

// body(part's range of `count` units) on `parts` threads; false if one of them gave false.
template <class Body>
bool in_parallel(int64_t count, int parts, const Body& body) {
  bool success = true;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
#endif
  for (int part = 0; part < parts; ++part) {
    if (body(part_of(count, part, parts))) continue;
#if defined(_OPENMP)
#pragma omp atomic write
#endif
    success = false;
  }
  return success;
}

// Scratch memory of one thread or call.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* allocate(int64_t count) {
    const size_t bytes = static_cast<size_t>(round_up(count * 4, 64));
    memory_ = static_cast<float*>(malloc(bytes + 64));
    if (!memory_) return nullptr;
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_);
    return memory_ + (64 - address % 64) % 64 / 4;
  }

 private:
  float* memory_ = nullptr;
};

// How a pooled output is cut into bands of rows, and which of the convolution's rows a band wants.
struct Bands {
  int64_t rows;   // of y, in a band
  int64_t count;  // of bands in an image
  int64_t most;   // rows of the convolution's output that a band wants

  // row_bytes: of a row of scratch
  Bands(const ActPool2dProblem& p, int64_t row_bytes) {
    const int64_t fitting = kBandBytes / row_bytes;
    rows = fitting < p.pool_height ? 1 : (fitting - p.pool_height) / p.pool_stride_height + 1;
    if (rows > p.out_height) rows = p.out_height;
    count = (p.out_height + rows - 1) / rows;
    most = (rows - 1) * p.pool_stride_height + p.pool_height;
    if (most > p.height) most = p.height;
  }
};

Range band_rows(const ActPool2dProblem& p, const Band& band) {
  const PoolAxis axis = vertical_axis(p);
  const PoolWindow top = pool_window(axis, band.p_first);
  const PoolWindow bottom = pool_window(axis, band.p_last - 1);
  return Range{top.start + top.first, bottom.start + bottom.last};
}

Band band_of(const ActPool2dProblem& p, const Bands& bands, int64_t n, int64_t index,
             int64_t k_first, int most_channels) {
  Band band;
  band.n = n;
  band.p_first = index * bands.rows;
  band.p_last = band.p_first + bands.rows < p.out_height ? band.p_first + bands.rows : p.out_height;
  band.k_first = k_first;
  const int64_t left = p.channels - k_first;
  band.k_count = left < most_channels ? static_cast<int>(left) : most_channels;
  return band;
}

// -- x is NHWC ------------------------------------------------------------------------------------

class PixelForward {
 public:
  PixelForward(const ConvActPool2dProblem& p, const ConvForwardTensors& t)
      : p_(p), t_(t), tiles_(pixel_tile_functions(p)), step_(round_up(p.in_channels, kV)) {}

  bool run(int threads) {
    const int64_t taps = p_.kernel_height * p_.kernel_width;
    float* memory = scratch_.allocate((taps + 1) * step_);
    if (!memory) return false;
    prepare(taps, memory);
    const int parts = useful_threads(p_.pool, threads);
    const ActPool2dProblem& pool = p_.pool;
    if (pool.pool == Pool::kNone && pool.channels_last) {
      const int64_t groups = (pool.height + kTileRows - 1) / kTileRows;
      return in_parallel(pool.batch * groups, parts, [&](Range units) {
        direct(units, groups);
        return true;
      });
    }
    const Bands bands(pool, pool.width * kV * 4);
    return in_parallel(pool.batch * bands.count * blocks(), parts,
                       [&](Range units) { return banded(units, bands); });
  }

 private:
  int64_t blocks() const { return step_ / kV; }

  // w [C, R, S] -> filter [R, S][C], bias [C], both filled up with zeros
  void prepare(int64_t taps, float* memory) {
    const int64_t C = p_.in_channels;
    const float* w = static_cast<const float*>(t_.w);
    const float* bias = static_cast<const float*>(t_.bias);
    for (int64_t i = 0; i < taps; ++i) {
      for (int64_t c = 0; c < step_; ++c) memory[i * step_ + c] = c < C ? w[c * taps + i] : 0.0f;
    }
    filter_ = memory;
    bias_ = memory + taps * step_;
    for (int64_t c = 0; c < step_; ++c) memory[taps * step_ + c] = bias && c < C ? bias[c] : 0.0f;
  }

  const float* image(int64_t n) const {
    return static_cast<const float*>(t_.x) + n * p_.height * p_.width * p_.in_channels;
  }

  void direct(Range units, int64_t groups) const {
    const ActPool2dProblem& pool = p_.pool;
    const int64_t C = p_.in_channels;
    const int64_t row = pool.width * C;
    float* y = static_cast<float*>(t_.y);
    const bool whole = C % kV == 0 && reinterpret_cast<uintptr_t>(y) % CMF_VECTOR_BYTES == 0;
    const QuickActivation quick = quick_activation(pool);
    const bool afterwards = quick.kind == QuickActivation::kAfterwards;
    const bool past_caches =
        whole && !afterwards && pool.batch * pool.height * row * 4 > kLargeBytes;
    const PixelKernel kernel = {p_,         C, C, row, step_, afterwards ? no_activation() : quick,
                                past_caches};
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t n = unit / groups;
      const int64_t first = unit % groups * kTileRows;
      const int64_t left = pool.height - first;
      const int rows = left < kTileRows ? static_cast<int>(left) : kTileRows;
      float* target = y + (n * pool.height + first) * row;
      pixel_rows(kernel, tiles_, image(n), filter_, bias_, first, rows, 0, C, target);
      if (afterwards) {
        activate_row(pool, target, RowBias<float>{-0.0f, nullptr}, target, rows * row);
      }
    }
    if (past_caches) fence_stores();
  }

  bool banded(Range units, const Bands& bands) const {
    const ActPool2dProblem& pool = p_.pool;
    const int64_t row = pool.width * kV;
    Scratch scratch;
    float* z = scratch.allocate(bands.most * row);
    BandEpilogue epilogue(pool, kV, bands.rows);
    if (!z || !epilogue.prepare()) return false;
    const PixelKernel kernel = {p_, p_.in_channels, kV, row, step_, no_activation(), false};
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t block = unit % blocks();
      const int64_t index = unit / blocks() % bands.count;
      const int64_t n = unit / blocks() / bands.count;
      const Band band = band_of(pool, bands, n, index, block * kV, kV);
      const Range wanted = band_rows(pool, band);
      for (int64_t h = wanted.first; h < wanted.last; h += kTileRows) {
        const int64_t left = wanted.last - h;
        const int rows = left < kTileRows ? static_cast<int>(left) : kTileRows;
        float* target = z + (h - wanted.first) * row;
        pixel_rows(kernel, tiles_, image(n), filter_, bias_, h, rows, band.k_first, band.k_count,
                   target);
      }
      // what the epilogue computes in the lanes that don't count needs a value
      if (band.k_count < kV) {
        for (int64_t i = 0; i < (wanted.last - wanted.first) * pool.width; ++i) {
          for (int lane = band.k_count; lane < kV; ++lane) z[i * kV + lane] = 0.0f;
        }
      }
      epilogue.pool(z, wanted.first, band, t_);
    }
    return true;
  }

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const PixelTileFunctions tiles_;
  const int64_t step_;  // channels, rounded up to whole vectors
  Scratch scratch_;
  const float* filter_ = nullptr;
  const float* bias_ = nullptr;
};

// -- x is NCHW ------------------------------------------------------------------------------------

class RowForward {
 public:
  RowForward(const ConvActPool2dProblem& p, const ConvForwardTensors& t)
      : p_(p), t_(t), strips_(row_strip_functions(p)) {}

  bool run(int threads) const {
    const int parts = useful_threads(p_.pool, threads);
    const ActPool2dProblem& pool = p_.pool;
    const int64_t planes = pool.batch * pool.channels;
    if (pool.channels_last) {
      const Bands bands(pool, pool.width * kV * 4);
      const int64_t blocks = (pool.channels + kV - 1) / kV;
      return in_parallel(pool.batch * blocks * bands.count, parts,
                         [&](Range units) { return to_channels_last(units, bands, blocks); });
    }
    if (pool.pool == Pool::kNone) {
      return in_parallel(planes * pool.height, parts, [&](Range rows) {
        direct(rows);
        return true;
      });
    }
    const Bands bands(pool, pool.width * 4);
    return in_parallel(planes * bands.count, parts,
                       [&](Range units) { return pooled(units, bands); });
  }

 private:
  RowKernel plane(int64_t n, int64_t k, QuickActivation act) const {
    const int64_t c = k / (p_.pool.channels / p_.in_channels);
    const float* bias = static_cast<const float*>(t_.bias);
    return RowKernel{
        p_,
        static_cast<const float*>(t_.x) + (n * p_.in_channels + c) * p_.height * p_.width,
        static_cast<const float*>(t_.w) + k * p_.kernel_height * p_.kernel_width,
        bias ? bias[k] : 0.0f,
        act,
    };
  }

  // Rows first .. last - 1 of a plane; `y`: the first. The last strip may go over rows again.
  void plane_rows(const RowKernel& kernel, int64_t first, int64_t last, float* y) const {
    const int64_t Q = p_.pool.width;
    if (last - first < kStripRows) {
      for (int64_t p = first; p < last; ++p) strips_.one(kernel, p, y + (p - first) * Q);
      return;
    }
    for (int64_t p = first; p < last; p += kStripRows) {
      const int64_t start = p + kStripRows <= last ? p : last - kStripRows;
      strips_.whole(kernel, start, y + (start - first) * Q);
    }
  }

  void direct(Range rows) const {
    const ActPool2dProblem& pool = p_.pool;
    const QuickActivation quick = quick_activation(pool);
    const bool afterwards = quick.kind == QuickActivation::kAfterwards;
    const int64_t band = afterwards ? Bands(pool, pool.width * 4).rows : pool.height;
    for (int64_t row = rows.first; row < rows.last;) {
      const int64_t plane_index = row / pool.height;
      const int64_t first = row % pool.height;
      int64_t last = first + (rows.last - row);
      if (last > first + band) last = first + band;
      if (last > pool.height) last = pool.height;
      float* y = static_cast<float*>(t_.y) + row * pool.width;
      const RowKernel kernel = plane(plane_index / pool.channels, plane_index % pool.channels,
                                     afterwards ? no_activation() : quick);
      plane_rows(kernel, first, last, y);
      if (afterwards) {
        activate_row(pool, y, RowBias<float>{-0.0f, nullptr}, y, (last - first) * pool.width);
      }
      row += last - first;
    }
  }

  bool pooled(Range units, const Bands& bands) const {
    const ActPool2dProblem& pool = p_.pool;
    constexpr int64_t kSlack = kSlackLanes * kV;
    Scratch scratch;
    float* z = scratch.allocate(bands.most * pool.width + kSlack);
    ForwardWorker<float> worker(pool);
    if (!z || !worker.prepare(nullptr)) return false;
    for (int64_t i = 0; i < bands.most * pool.width + kSlack; ++i) z[i] = 0.0f;
    const int64_t area = pool.out_height * pool.out_width;
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t index = unit / bands.count;
      const Band band = band_of(pool, bands, 0, unit % bands.count, 0, 1);
      const Range wanted = band_rows(pool, band);
      plane_rows(plane(index / pool.channels, index % pool.channels, no_activation()), wanted.first,
                 wanted.last, z);
      char* codes = static_cast<char*>(t_.index);
      float* preactivation = static_cast<float*>(t_.preactivation);
      worker.run(z - wanted.first * pool.width, -0.0f, static_cast<float*>(t_.y) + index * area,
                 codes ? codes + index * area * pool.index_itemsize : nullptr,
                 preactivation ? preactivation + index * area : nullptr, band.p_first, band.p_last,
                 wanted.last * pool.width + kSlack, band.p_last - band.p_first);
    }
    return true;
  }

  bool to_channels_last(Range units, const Bands& bands, int64_t blocks) const {
    const ActPool2dProblem& pool = p_.pool;
    const int64_t pitch = round_up(bands.most * pool.width, kV);
    Scratch scratch;
    float* planes = scratch.allocate(2 * kV * pitch);
    BandEpilogue epilogue(pool, kV, bands.rows);
    if (!planes || !epilogue.prepare()) return false;
    for (int64_t i = 0; i < kV * pitch; ++i) planes[i] = 0.0f;
    float* z = planes + kV * pitch;
    for (int64_t unit = units.first; unit < units.last; ++unit) {
      const int64_t index = unit % bands.count;
      const int64_t block = unit / bands.count % blocks;
      const int64_t n = unit / bands.count / blocks;
      const Band band = band_of(pool, bands, n, index, block * kV, kV);
      const Range wanted = band_rows(pool, band);
      for (int k = 0; k < band.k_count; ++k) {
        plane_rows(plane(n, band.k_first + k, no_activation()), wanted.first, wanted.last,
                   planes + k * pitch);
      }
      const int64_t pixels = (wanted.last - wanted.first) * pool.width;
      for (int64_t i = 0; i < pixels; i += kV) {
        Vec<float> values[kV];
        for (int k = 0; k < kV; ++k) values[k] = load<float>(planes + k * pitch + i);
        transpose_block<float>(values);
        for (int j = 0; j < kV; ++j) store<float>(z + (i + j) * kV, values[j]);
      }
      epilogue.pool(z, wanted.first, band, t_);
    }
    return true;
  }

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const RowStripFunctions strips_;
};

}  // namespace

const char* depthwise_refusal(const ConvActPool2dProblem& p, bool backward) {
  if (static_cast<DType>(p.pool.dtype) != DType::kFloat32) return "takes float32 alone";
  if (p.groups != p.in_channels) return "takes as many groups as input channels";
  if (p.x_channels_last && p.pool.channels != p.in_channels) {
    return "takes several filters a channel from contiguous input alone";
  }
  if (p.pool.index_itemsize > 1) return "takes max pooling windows of up to 255 elements";
  return backward ? "has no backward" : nullptr;
}

bool depthwise_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  if (p.x_channels_last) return PixelForward(p, t).run(threads);
  return RowForward(p, t).run(threads);
}

}  // namespace CMF_ISA
}  // namespace cmf

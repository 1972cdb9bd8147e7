// Depthwise convolution with what follows it: x is read once and y written once. Without a pooling
// and a change of format the activation happens in registers or, where it is long, on rows that are
// still in cache; all else goes through bands of scratch memory whose lanes are channels.
#include "cpu/depthwise.h"

#include "cpu/channel_lanes.h"
#include "cpu/depthwise_filter.h"
#include "cpu/depthwise_rows.h"
#include "cpu/integers.h"
#include "cpu/pooled_bands.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
// Outputs above this are stored past the caches: their readers would hardly find them there.
constexpr int64_t kLargeBytes = INT64_C(1) << 23;
constexpr int64_t kActivatedBytes = INT64_C(1) << 14;  // half of the first cache
// Narrower planes leave too much of their vectors empty: they are transposed to lanes of channels.
constexpr int64_t kWideRow = 2 * kV;

// Whether a large output consists of whole vectors: `run` elements lie side by side.
bool stores_past_caches(const ConvForwardTensors& t, const ActPool2dProblem& pool, int64_t run) {
  return run % kV == 0 && reinterpret_cast<uintptr_t>(t.y) % CMF_VECTOR_BYTES == 0 &&
         pool.batch * pool.channels * pool.height * pool.width * 4 > kLargeBytes;
}

// `count` sums, activated, go to y.
void store_activated(const ActPool2dProblem& pool, const float* z, float* y, int64_t count,
                     bool past_caches) {
  if (past_caches) return stream_activated(pool, z, y, count);
  activate_row(pool, z, RowBias<float>{-0.0f, nullptr}, y, count);
}

// The lines come while the sums are computed: the activated ones are stored all at once.
void prefetch_to_write(const float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLineFloats) __builtin_prefetch(y + i, 1);
}

int64_t image_size(const ConvActPool2dProblem& p) { return p.in_channels * p.height * p.width; }

// -- NHWC to NHWC without a pooling: groups of kTileRows rows
// ------------------------------------

bool run_pixels(const ConvActPool2dProblem& p, const ConvForwardTensors& t,
                const DepthwiseFilter& filter, Range groups) {
  const ActPool2dProblem& pool = p.pool;
  const int64_t C = pool.channels;
  const int64_t row = pool.width * C;
  const int64_t groups_of_image = (pool.height + kTileRows - 1) / kTileRows;
  const QuickActivation quick = quick_activation(pool);
  const bool afterwards = quick.kind == QuickActivation::kAfterwards;
  const bool past_caches = (kV == kLineFloats || C == kV) && stores_past_caches(t, pool, C);
  const PixelLoops loops = pixel_loops(p, group_size(p));
  // columns whose sums are in the first cache when a long activation comes to them
  const int64_t tiles = kActivatedBytes / (kTileRows * kTileColumns * C * 4);
  const int64_t together = afterwards ? most(tiles, 1) * kTileColumns : pool.width;
  Scratch<float> z;
  if (afterwards && !z.allocate(kTileRows * together * C)) return false;
  PixelKernel kernel =
      filter.kernel(p, 0, C, afterwards ? no_activation() : quick, past_caches && !afterwards);
  if (afterwards) kernel.y_row = together * C;
  for (int64_t group = groups.first; group < groups.last; ++group) {
    const int64_t n = group / groups_of_image;
    const int64_t first = group % groups_of_image * kTileRows;
    const int rows = pool.height - first < kTileRows ? 1 : kTileRows;
    const float* x = static_cast<const float*>(t.x) + n * image_size(p);
    float* y = static_cast<float*>(t.y) + (n * pool.height + first) * row;
    for (int64_t q = 0; q < pool.width; q += together) {
      const Range columns = {q, least(q + together, pool.width)};
      float* target = afterwards ? z.data : y + q * C;
      for (int i = 0; afterwards && !past_caches && i < rows; ++i) {
        prefetch_to_write(y + i * row + q * C, (columns.last - q) * C);
      }
      pixel_rows(kernel, loops, PixelRows{x, target - q * C, first, rows}, columns, C);
      for (int i = 0; afterwards && i < rows; ++i) {
        store_activated(pool, target + i * kernel.y_row, y + i * row + q * C,
                        (columns.last - q) * C, past_caches);
      }
    }
  }
  if (past_caches) fence_streams();
  return true;
}

// -- NCHW to NCHW without a pooling: rows of the output, all planes' one after another
// ----------

bool run_rows(const ConvActPool2dProblem& p, const ConvForwardTensors& t, Range rows) {
  const ActPool2dProblem& pool = p.pool;
  const QuickActivation quick = quick_activation(pool);
  const bool afterwards = quick.kind == QuickActivation::kAfterwards;
  const bool past_caches = stores_past_caches(t, pool, pool.width);
  const int64_t most_rows = afterwards ? most(kActivatedBytes / (pool.width * 4), 1) : pool.height;
  Scratch<float> z;
  if (afterwards && !z.allocate(most_rows * pool.width)) return false;
  const int64_t filters = pool.channels / p.in_channels;  // a channel
  const float* bias = static_cast<const float*>(t.bias);
  for (int64_t row = rows.first; row < rows.last;) {
    const int64_t plane = row / pool.height;  // n K + k
    const int64_t k = plane % pool.channels;
    const int64_t first = row % pool.height;
    int64_t last = first + (rows.last - row);
    if (last > first + most_rows) last = first + most_rows;
    if (last > pool.height) last = pool.height;
    const RowKernel kernel = {
        p,
        static_cast<const float*>(t.x) + plane / filters * (p.height * p.width),
        static_cast<const float*>(t.w) + k * p.kernel_height * p.kernel_width,
        bias ? bias[k] : 0.0f,
        afterwards ? no_activation() : quick,
        past_caches && !afterwards,
    };
    float* y = static_cast<float*>(t.y) + row * pool.width;
    float* target = afterwards ? z.data : y;
    if (afterwards && !past_caches) prefetch_to_write(y, (last - first) * pool.width);
    plane_rows(kernel, first, last, target);
    if (afterwards) store_activated(pool, target, y, (last - first) * pool.width, past_caches);
    row += last - first;
  }
  if (past_caches) fence_streams();
  return true;
}

// -- all else: bands of some channels
// --------------------------------------------------------------

// The rows of x that a band's channels want, as [rows][W][kV].
class BandSource {
 public:
  BandSource(const ConvActPool2dProblem& p, const float* x) : p_(p), x_(x) {}

  // Whether x must be gathered: else it is read in place.
  static bool gathers(const ConvActPool2dProblem& p) {
    return !p.x_channels_last || p.pool.channels != p.in_channels;
  }
  int64_t size(int64_t z_rows) const {
    const int64_t reach = (p_.kernel_height - 1) * p_.dilation_height + 1;
    const int64_t rows = (z_rows - 1) * p_.stride_height + reach;
    return round_up((rows < p_.height ? rows : p_.height) * p_.width, kV) * kV;
  }
  // Rows z_rows of the convolution's output; the first row that `target` then has.
  int64_t gather(const Band& band, Range z_rows, float* target) const {
    const int64_t reach = (p_.kernel_height - 1) * p_.dilation_height + 1;
    int64_t first = z_rows.first * p_.stride_height - p_.pad_height;
    int64_t last = (z_rows.last - 1) * p_.stride_height - p_.pad_height + reach;
    if (first < 0) first = 0;
    if (last > p_.height) last = p_.height;
    if (last <= first) return 0;  // padding alone
    const int64_t pixels = (last - first) * p_.width;
    const int64_t filters = p_.pool.channels / p_.in_channels;
    const float* image = x_ + band.n * image_size(p_);
    if (p_.x_channels_last) {
      for (int64_t i = 0; i < pixels; ++i) {
        const float* pixel = image + (first * p_.width + i) * p_.in_channels;
        for (int lane = 0; lane < kV; ++lane) {
          const int64_t k = band.k_first + lane;
          target[i * kV + lane] = lane < band.k_count ? pixel[k / filters] : 0.0f;
        }
      }
      return first;
    }
    if (filters == 1) {
      const float* plane = image + (band.k_first * p_.height + first) * p_.width;
      planes_to_lanes(plane, p_.height * p_.width, band.k_count, pixels, target);
      return first;
    }
    for (int lane = 0; lane < kV; ++lane) {
      const int64_t c = (band.k_first + lane) / filters;
      const float* plane = image + (c * p_.height + first) * p_.width;
      for (int64_t i = 0; i < pixels; ++i) {
        target[i * kV + lane] = lane < band.k_count ? plane[i] : 0.0f;
      }
    }
    return first;
  }

 private:
  const ConvActPool2dProblem& p_;
  const float* x_;
};

// Channels of a band: of an NHWC x as many as leave room for a row of windows in the first cache,
// so that its pixels are read in whole lines.
int band_lanes(const ConvActPool2dProblem& p) {
  if (BandSource::gathers(p)) return kV;
  const int64_t lines = kBandBytes / kLineBytes / (p.pool.pool_height * p.pool.width);
  return static_cast<int>(most(least(lines * kLineFloats, round_up(p.pool.channels, kV)), kV));
}

bool run_bands(const ConvActPool2dProblem& p, const ConvForwardTensors& t,
               const DepthwiseFilter& filter, const PooledBands& bands, int most_channels,
               Range units) {
  const ActPool2dProblem& pool = p.pool;
  const int64_t blocks = divide_up(pool.channels, most_channels);
  const float* x = static_cast<const float*>(t.x);
  const BandSource source(p, x);
  const bool gathers = BandSource::gathers(p);
  const int64_t z_size = bands.most * pool.width * most_channels;
  Scratch<float> scratch;
  BandEpilogue epilogue(pool, most_channels, bands.rows);
  if (!scratch.allocate(z_size + (gathers ? source.size(bands.most) : 0))) return false;
  if (!epilogue.prepare()) return false;
  float* z = scratch.data;
  // what the epilogue computes of lanes that don't count needs a value
  for (int64_t i = 0; i < z_size; ++i) z[i] = 0.0f;
  ConvActPool2dProblem lanes = p;
  if (gathers) lanes.in_channels = lanes.image_channels = kV;
  const PixelLoops loops = pixel_loops(p, group_size(p));
  const QuickActivation quick = quick_activation(pool);
  const bool activated = pool.pool == Pool::kNone && quick.kind != QuickActivation::kAfterwards;
  const QuickActivation act = activated ? quick : no_activation();
  for (int64_t unit = units.first; unit < units.last; ++unit) {
    // in the order of x's addresses: planes one after another, or rows of all channels
    const int64_t index = (gathers ? unit : unit / blocks) % bands.count;
    const int64_t block = (gathers ? unit / bands.count : unit) % blocks;
    const Band band = band_of(pool, bands, unit / blocks / bands.count, index,
                              block * most_channels, most_channels);
    const Range wanted = band_rows(pool, band);
    const float* image = x + band.n * image_size(p) + band.k_first;
    if (gathers) {
      float* gathered = z + z_size;
      image = gathered - source.gather(band, wanted, gathered) * p.width * kV;
    }
    const PixelKernel kernel = filter.kernel(lanes, band.k_first, most_channels, act, false);
    for (int64_t h = wanted.first; h < wanted.last; h += kTileRows) {
      const int rows = wanted.last - h < kTileRows ? 1 : kTileRows;
      float* target = z + (h - wanted.first) * pool.width * most_channels;
      pixel_rows(kernel, loops, PixelRows{image, target, h, rows}, Range{0, pool.width},
                 gathers ? kV : band.k_count);
    }
    if (activated) {
      store_band(pool, band, z, most_channels, pool.channels, static_cast<float*>(t.y));
    } else {
      epilogue.pool(z, wanted.first, band, t);
    }
  }
  return true;
}

}  // namespace

const char* depthwise_refusal(const ConvActPool2dProblem& p, bool backward) {
  if (static_cast<DType>(p.pool.dtype) != DType::kFloat32) return "takes float32 alone";
  if (p.groups != p.in_channels) {
    const int group = group_size(p);
    if (kV < 8 || p.pool.channels != p.in_channels || 8 % group != 0 || !is_square(p) ||
        p.kernel_width != kTaps) {
      return "takes as many groups as input channels, or 3x3 groups of 2, 4 or 8 channels with as "
             "many filters, in vectors of at least 8";
    }
    if (backward) return "takes groups of one channel in backward";
  }
  if (p.pool.index_itemsize > 1) return "takes max pooling windows of up to 255 elements";
  if (!backward) return nullptr;
  if (p.pool.pool != Pool::kNone) return "takes no pooling in backward";
  if (p.pool.channels != p.in_channels) return "takes one filter a channel in backward";
  if (p.x_channels_last != p.pool.channels_last) return "takes one memory format in backward";
  if (p.pad_height > (p.kernel_height - 1) * p.dilation_height ||
      p.pad_width > (p.kernel_width - 1) * p.dilation_width) {
    return "takes less padding than the kernel reaches in backward";
  }
  return nullptr;
}

bool depthwise_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  const ActPool2dProblem& pool = p.pool;
  const int parts = useful_threads(pool, threads);
  const bool plain = pool.pool == Pool::kNone && p.x_channels_last == pool.channels_last;
  if (plain && !pool.channels_last && pool.width >= kWideRow && is_square(p) &&
      p.kernel_width == kTaps && p.stride_width == 1 && group_size(p) == 1) {
    return in_parallel(pool.batch * pool.channels * pool.height, parts,
                       [&](Range rows) { return run_rows(p, t, rows); });
  }
  DepthwiseFilter filter(pool.channels);
  if (!filter.prepare(p, t.w, t.bias, false)) return false;
  if (plain && pool.channels_last && pool.channels == p.in_channels) {
    const int64_t groups = pool.batch * ((pool.height + kTileRows - 1) / kTileRows);
    return in_parallel(groups, parts, [&](Range part) { return run_pixels(p, t, filter, part); });
  }
  const int lanes = band_lanes(p);
  const PooledBands bands(pool, pool.width * lanes * int64_t(sizeof(float)));
  const int64_t units = pool.batch * bands.count * divide_up(pool.channels, lanes);
  return in_parallel(units, parts,
                     [&](Range part) { return run_bands(p, t, filter, bands, lanes, part); });
}

}  // namespace CMF_ISA
}  // namespace cmf

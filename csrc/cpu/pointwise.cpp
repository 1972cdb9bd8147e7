// A 1x1 convolution with what follows it: products of packed pixels and packed weights, whose sums
// get their bias and activation in registers. x is read once. With a pooling, bands of the products
// pass through scratch memory.
#include "cpu/pointwise.h"

#include "cpu/activated_tiles.h"
#include "cpu/few_filters.h"
#include "cpu/few_pixels.h"
#include "cpu/groups.h"
#include "cpu/row_products.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
constexpr int64_t kSetFloats = 1024;  // at whose multiples lines share a set of the first cache
constexpr int64_t kMostPanels = 8;
constexpr int64_t kPackedBytes = INT64_C(1) << 17;  // of pixels: beside weights in the second cache

// The rows are pixels.
class Pixels : public RowSource {
 public:
  Pixels(const ConvActPool2dProblem& p, const PointwiseInput& input) : p_(p), input_(input) {}

  void pack(Range pixels, float*, float* packed) const override {
    pack_pixels(p_, input_, pixels, packed);
  }
  // A few panels of filters read each pixel where it is, unless those of a tile would share a few
  // sets of the first cache.
  const float* row(int64_t pixel) const override { return input_.x + pixel * p_.image_channels; }
  int64_t row_step() const override {
    const bool adjacent = p_.x_channels_last && p_.stride_height == 1 && p_.stride_width == 1;
    const bool few = p_.pool.channels <= kMostPanels * kTileLanes;
    const bool apart = p_.image_channels % kSetFloats != 0;
    return adjacent && few && apart && !input_.scale ? p_.image_channels : 0;
  }
  Range runs(Range) const override { return Range{0, 1}; }
  int64_t scratch_floats(int64_t) const override { return 0; }

 private:
  const ConvActPool2dProblem& p_;
  const PointwiseInput& input_;
};

// NCHW to NCHW without a pooling: the filters are rows, panels of pixels columns.
class FilterRows {
 public:
  FilterRows(const ConvActPool2dProblem& p, const ConvForwardTensors& t,
             const PointwiseInput& input, int threads)
      : p_(p),
        t_(t),
        input_(input),
        step_(round_up(p.in_channels, kV)),
        quick_(quick_activation(p.pool)),
        past_caches_(stores_past_caches(p, t, p.pool.height * p.pool.width, kLineFloats)),
        threads_(product_threads(p, p.in_channels, threads)),
        weights_(static_cast<const float*>(t.prepared)) {}

  bool run() {
    const ActPool2dProblem& pool = p_.pool;
    if (!bias_.allocate(pool.channels)) return false;
    const float* bias = static_cast<const float*>(t_.bias);
    for (int64_t k = 0; k < pool.channels; ++k) bias_.data[k] = bias ? bias[k] : 0.0f;
    const int64_t area = pool.height * pool.width;
    const int64_t across = (area + kTileLanes - 1) / kTileLanes;
    const TileRows rows = {pool.channels};
    const bool adjacent = p_.stride_height == 1 && p_.stride_width == 1;
    const bool large = pool.channels * p_.in_channels * 4 >= kFetchedBytes;
    const int64_t cuts = cuts_of(pool.batch * across, rows.tiles(), threads_);
    return in_parallel(pool.batch * across * cuts, threads_, [&](Range units) {
      Scratch<float> packed;
      if (!packed.allocate(p_.in_channels * kTileLanes)) return false;
      for (int64_t unit = units.first; unit < units.last; ++unit) {
        const int64_t n = unit / cuts / across;
        const int64_t first = unit / cuts % across * kTileLanes;
        const int64_t last = first + kTileLanes < area ? first + kTileLanes : area;
        const float* image = input_.x + n * p_.image_channels * p_.height * p_.width;
        pack_columns(p_, input_, n, Range{first, last}, packed.data);
        const Range tiles =
            part_of(rows.tiles(), static_cast<int>(unit % cuts), static_cast<int>(cuts));
        multiply_filters(packed.data, rows, tiles, static_cast<int>(last - first),
                         n * pool.image_channels * area + first, area,
                         adjacent && last < area ? image + last : nullptr,
                         large && unit / cuts == units.first / cuts);
      }
      if (past_caches_) fence_streams();
      return true;
    });
  }

 private:
  void multiply_filters(const float* packed, TileRows rows, Range tiles, int columns, int64_t first,
                        int64_t area, const float* ahead, bool fetches) const {
    PointwiseTile tile;
    tile.b = packed;
    tile.channels = p_.in_channels;
    tile.bias = nullptr;
    tile.y_row = area;
    tile.columns = columns;
    tile.act = quick_;
    tile.past_caches = past_caches_;
    const float* residual = static_cast<const float*>(t_.residual);
    ActivatedTiles activated(p_.pool);
    const EvenParts parts = rows.parts();
    for (int64_t i = tiles.first; i < tiles.last; ++i) {
      const int64_t row = parts.first(i);
      tile.a = weights_ + row * step_;
      tile.row_bias = bias_.data + row;
      const int64_t offset = first + row * area;
      tile.y = static_cast<float*>(t_.y) + offset;
      tile.residual = residual ? residual + offset : nullptr;
      const int count = static_cast<int>(parts.size(i));
      if (ahead && i == tiles.first) {
        tile.ahead = ahead;
        tile.ahead_step = p_.height * p_.width;
        tile.ahead_count = kV;
      } else {  // the next filters may come from memory
        tile.ahead = tile.a + count * step_;
        tile.ahead_step = 32;
        tile.ahead_count =
            fetches && i + 1 < tiles.last ? static_cast<int>(divide_up(count * kV, 32)) : 0;
      }
      const PointwiseKernel kernel = pointwise_kernel_for(count, columns > kV ? 2 : 1);
      if (quick_.kind == QuickActivation::kAfterwards) {
        activated.run(tile, count, kernel);
      } else {
        kernel(tile);
      }
    }
    activated.finish();
  }

  const ConvActPool2dProblem& p_;
  const ConvForwardTensors& t_;
  const PointwiseInput& input_;
  const int64_t step_;  // C, rounded up to whole vectors
  const QuickActivation quick_;
  const bool past_caches_;
  const int threads_;
  const float* const weights_;
  Scratch<float> bias_;
};

RowLength row_length(const ConvActPool2dProblem& p) {
  return RowLength{1, p.in_channels, kPackedBytes};
}

bool forward_of_group(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  const PointwiseInput input = input_of(t);
  if (takes_few_pixels(p)) return few_pixels_forward(p, t, threads);
  if (takes_few_filters(p, t)) return few_filters_forward(p, t, threads);
  if (filters_are_rows(p)) return FilterRows(p, t, input, threads).run();
  const Pixels pixels(p, input);
  const RawFilters filters = {static_cast<const float*>(t.w), static_cast<const float*>(t.w_scale),
                              p.pool.channels, 1, p.in_channels};
  return RowProducts(p, t, pixels, row_length(p), threads, filters).run();
}

}  // namespace

const char* pointwise_refusal(const ConvActPool2dProblem& p, bool backward) {
  if (static_cast<DType>(p.pool.dtype) != DType::kFloat32) return "takes float32 alone";
  if (p.kernel_height != 1 || p.kernel_width != 1) return "takes 1x1 kernels alone";
  if (const char* reason = groups_refusal(p)) return reason;
  if (p.groups != 1 && (p.stride_height != 1 || p.stride_width != 1)) {
    return "takes groups at stride 1 alone";
  }
  if (p.pad_height != 0 || p.pad_width != 0) return "takes no padding";
  if (p.pool.index_itemsize > 1) return "takes max pooling windows of up to 255 elements";
  if (backward && p.pool.saved == Saved::kInput) {
    return "keeps no convolution output for the backward of this activation";
  }
  return nullptr;
}

const char* pointwise_residual_refusal(const ConvActPool2dProblem& p) {
  const Groups groups(p);
  const ConvForwardTensors plain = {};
  if (takes_few_pixels(groups.problem()) || takes_few_filters(groups.problem(), plain)) {
    return "takes no residual with a few filters or pixels";
  }
  return band_residual_refusal(p);
}

bool pointwise_reads_weights(const ConvActPool2dProblem& p, int) {
  const ConvForwardTensors plain = {};
  return !takes_few_pixels(p) && !takes_few_filters(p, plain) && !filters_are_rows(p) &&
         reads_raw_filters(p, row_length(p));
}

bool pointwise_transforms_weights(const ConvActPool2dProblem& p, int threads) {
  const ConvForwardTensors plain = {};
  return pointwise_reads_weights(p, threads) || takes_few_pixels(p) ||
         (p.pool.pool == Pool::kNone && takes_few_filters(p, plain));
}

int64_t pointwise_prepared_size(const ConvActPool2dProblem& p) {
  const ConvForwardTensors plain = {};
  if (takes_few_pixels(p) || (p.pool.pool == Pool::kNone && takes_few_filters(p, plain))) return 0;
  const Groups groups(p);
  return groups.count() * packed_weights_size(groups.problem());
}

bool pointwise_prepare(const ConvActPool2dProblem& p, const void* w, void* prepared, int threads) {
  const Groups groups(p);
  const int64_t size = packed_weights_size(groups.problem());
  return groups.each(threads, [&](int64_t g, int threads_of_group) {
    pack_weights(groups.problem(), static_cast<const float*>(groups.weights(w, g)),
                 static_cast<float*>(prepared) + g * size, threads_of_group);
    return true;
  });
}

bool pointwise_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  const Groups groups(p);
  if (groups.count() == 1) return forward_of_group(p, t, threads);
  const int64_t size = packed_weights_size(groups.problem());
  return groups.each(threads, [&](int64_t g, int threads_of_group) {
    return forward_of_group(groups.problem(), groups.tensors(t, g, size), threads_of_group);
  });
}

}  // namespace CMF_ISA
}  // namespace cmf

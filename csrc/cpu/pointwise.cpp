// A 1x1 convolution with what follows it: products of packed pixels and packed weights, whose sums
// get their bias and activation in registers. x is read once. With a pooling, bands of the products
// pass through scratch memory.
#include "cpu/pointwise.h"

#include "cpu/few_filters.h"
#include "cpu/few_pixels.h"
#include "cpu/filter_rows.h"
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

RowLength row_length(const ConvActPool2dProblem& p) {
  return RowLength{1, p.in_channels, kPackedBytes};
}

// Whether the weights are read as they are, whatever they are.
bool never_packs(const ConvActPool2dProblem& p) {
  const ConvForwardTensors plain = {};
  return takes_few_pixels(p) || (p.pool.pool == Pool::kNone && takes_few_filters(p, plain));
}

bool forward_of_group(const ConvActPool2dProblem& p, const ConvForwardTensors& t, int threads) {
  const PointwiseInput input = input_of(t);
  if (takes_few_pixels(p)) return few_pixels_forward(p, t, threads);
  if (takes_few_filters(p, t)) return few_filters_forward(p, t, threads);
  if (filters_are_rows(p)) return filter_rows_forward(p, t, input, threads);
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
  if (never_packs(p)) return false;
  return filters_are_rows(p) ? filter_rows_read_weights(p) : reads_raw_filters(p, row_length(p));
}

bool pointwise_transforms_weights(const ConvActPool2dProblem& p, int threads) {
  return pointwise_reads_weights(p, threads) || never_packs(p);
}

int64_t pointwise_prepared_size(const ConvActPool2dProblem& p) {
  if (never_packs(p)) return 0;
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

// The convolution as a product of matrices: its patches of x, packed a few rows at a time, times
// its filters, with bias and activation in registers. The matrix of all patches never exists.
#include "cpu/grouped_patches.h"
#include "cpu/groups.h"
#include "cpu/patches.h"
#include "cpu/patches_pack.h"
#include "cpu/row_products.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kLongestPatch = INT64_C(1) << 22;  // floats

RowLength row_length(const PatchRuns& runs) {
  return RowLength{runs.count, runs.channels, kPackedPatchBytes};
}

// Of each group, its panels.
void pack_groups(const ConvActPool2dProblem& p, const float* w, bool w_channels_last, float* packed,
                 int threads) {
  const Groups groups(p);
  const int64_t size = patches_prepared_size(p) / groups.count();
  groups.each(threads, [&](int64_t g, int threads_of_group) {
    const float* filters = static_cast<const float*>(groups.weights(w, g));
    pack_filters(patch_filters(groups.problem(), filters, w_channels_last, nullptr),
                 packed + g * size, threads_of_group);
    return true;
  });
}

}  // namespace

const char* patches_refusal(const ConvActPool2dProblem& p, bool backward) {
  if (static_cast<DType>(p.pool.dtype) != DType::kFloat32) return "takes float32 alone";
  if (p.groups != 1 && backward) return "takes the gradients of one group alone";
  if (p.groups != 1) return grouped_patches_refusal(p);
  if (p.pool.index_itemsize > 1) return "takes max pooling windows of up to 255 elements";
  if (PatchRuns(p).step() > kLongestPatch) return "takes smaller filters";
  if (!backward) return nullptr;
  if (p.pool.pool != Pool::kNone || p.pool.saved != Saved::kNothing) {
    return "takes the gradient of the convolution's output";
  }
  if (!p.x_channels_last || !p.pool.channels_last) return "takes channels_last tensors alone";
  const bool strided = p.stride_height != 1 || p.stride_width != 1;
  if (strided && (p.dilation_height != 1 || p.dilation_width != 1)) {
    return "takes a stride or a dilation, not both";
  }
  return nullptr;
}

bool patches_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& given, int threads) {
  ConvForwardTensors t = given;
  Scratch<float> packed;
  if (p.groups != 1) {
    if (!t.prepared) {
      if (!packed.allocate(patches_prepared_size(p))) return false;
      pack_groups(p, static_cast<const float*>(t.w), t.w_channels_last, packed.data, threads);
      t.prepared = packed.data;
    }
    return grouped_patches_forward(p, t, threads);
  }
  const RawFilters filters = patch_filters(p, static_cast<const float*>(t.w), t.w_channels_last,
                                           static_cast<const float*>(t.w_scale));
  if (!t.prepared && !patches_reads_weights(p, threads)) {
    if (!packed.allocate(patches_prepared_size(p))) return false;
    pack_filters(filters, packed.data, threads);
    t.prepared = packed.data;
  }
  const Patches patches(p, static_cast<const float*>(t.x));
  return RowProducts(p, t, patches, row_length(PatchRuns(p)), threads, filters).run();
}

bool patches_reads_weights(const ConvActPool2dProblem& p, int) {
  return p.groups == 1 && reads_raw_filters(p, row_length(PatchRuns(p)));
}

int64_t patches_prepared_size(const ConvActPool2dProblem& p) {
  return p.groups * round_up(p.pool.channels / p.groups, kTileLanes) * (p.in_channels / p.groups) *
         p.kernel_height * p.kernel_width;
}

bool patches_prepare(const ConvActPool2dProblem& p, const void* w, void* prepared, int threads) {
  pack_groups(p, static_cast<const float*>(w), false, static_cast<float*>(prepared), threads);
  return true;
}

// In a training step they are made anew at every call, by the caller or here.
bool patches_transforms_weights(const ConvActPool2dProblem&, int) { return true; }

}  // namespace CMF_ISA
}  // namespace cmf

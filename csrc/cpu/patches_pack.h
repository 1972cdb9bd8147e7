// What the products of a convolution's patches read, in the order in which they read it: taps,
// and each tap's channels.
#pragma once

#include "cpu/row_products.h"

namespace cmf {
namespace CMF_ISA {

// Of patches that are packed together: every panel of filters reads them again, and they are read
// slower than the panel is. (Twice and four times as much: 0 to 10% slower.)
constexpr int64_t kPackedPatchBytes = INT64_C(1) << 19;

// What lies side by side in an image is one run of a patch. In NHWC that is a row of taps, or a tap
// alone where they are apart; in NCHW a channel's row of taps, where it fills a vector and channels
// don't: other images are turned to NHWC first.
struct PatchRuns {
  explicit PatchRuns(const ConvActPool2dProblem& p)
      : by_plane(!p.x_channels_last && p.dilation_width == 1 && p.kernel_width >= kLanes<float> &&
                 p.in_channels < kLanes<float>),
        across(p.dilation_width == 1 ? p.kernel_width : 1),
        count(p.kernel_height * (by_plane ? p.in_channels : p.kernel_width / across)),
        channels(by_plane ? p.kernel_width : across * p.in_channels),
        of_row(by_plane ? 1 : p.kernel_width / across) {}

  int64_t step() const { return count * round_up(channels, kLanes<float>); }

  bool by_plane;
  int64_t across;  // taps of a run
  int64_t count;
  int64_t channels;  // of all taps of a run
  int64_t of_row;    // runs of a row of taps
};

// The rows are patches of x [N, C, H, W].
class Patches : public RowSource {
 public:
  Patches(const ConvActPool2dProblem& problem, const float* x)
      : p_(problem), runs_(problem), x_(x) {}

  void pack(Range pixels, float* scratch, float* packed) const override;
  Range runs(Range pixels) const override;

  // Up to kTileLanes channels of one run, of an NHWC x, as columns: [2][pixels][kLanes].
  void pack_columns(Range pixels, int64_t run, Range channels, float* columns) const;
  int64_t scratch_floats(int64_t pixels) const override;

 private:
  // Rows of x, NHWC or all planes as they are, from `first` on.
  struct Image {
    const float* data;
    int64_t first;
  };

  Range input_rows(Range rows) const;
  Range kernel_rows(Range pixels) const;
  Image image_of(Range pixels, float* scratch) const;
  // Floats from a run of a patch that lies inside the image to the next.
  struct RunSteps {
    int64_t outer, outer_step;
    int64_t inner, inner_step;
  };

  void pack_patch(const Image& image, int64_t y, int64_t x, Range kernel_rows, int64_t rows,
                  float* packed) const;
  void pack_inside(const float* source, const RunSteps& steps, int64_t rows, float* packed) const;

  const ConvActPool2dProblem& p_;
  const PatchRuns runs_;
  const float* const x_;
};

// The weights [K, C, R, S], or [K, R, S, C], as columns [R][S][C], or [C][R][S] where the runs are
// planes'.
RawFilters patch_filters(const ConvActPool2dProblem& problem, const float* w, bool w_channels_last,
                         const float* w_scale);

}  // namespace CMF_ISA
}  // namespace cmf

// Brings the next band of x into the second-level cache while the products of this one run: the
// transforms would otherwise wait for memory that the products leave idle.
#pragma once

#include "cpu/winograd_bands.h"

namespace cmf {
namespace CMF_ISA {

class WinogradPrefetch {
 public:
  // Nothing.
  WinogradPrefetch() = default;

  // Rows first .. last - 1 of image n, or all of images n .. n_last, in `steps` steps.
  WinogradPrefetch(const ConvActPool2dProblem& p, const float* x, int64_t n, int64_t n_last,
                   int64_t first, int64_t last, int64_t steps) {
    if (first < 0) first = 0;
    if (last > p.height) last = p.height;
    const int64_t image = p.image_channels * p.height * p.width;
    const int64_t row = p.x_channels_last ? p.width * p.image_channels : p.width;
    const bool whole = n_last > n || (first == 0 && last == p.height);
    const int64_t images = n_last - n + 1;
    int64_t count, step;  // floats of a run, and from one to the next
    if (p.image_channels == p.in_channels) {
      runs_ = whole || p.x_channels_last ? 1 : p.in_channels;
      count = whole ? images * image : (last - first) * row;
      step = p.height * p.width;
    } else if (p.x_channels_last) {  // a pixel's, of the group
      runs_ = (whole ? images * p.height : last - first) * p.width;
      count = p.in_channels;
      step = p.image_channels;
    } else {  // an image's, or a channel's
      runs_ = whole ? images : p.in_channels;
      count = whole ? p.in_channels * p.height * p.width : (last - first) * row;
      step = whole ? image : p.height * p.width;
    }
    base_ = reinterpret_cast<const char*>(x + n * image + (whole ? 0 : first * row));
    run_bytes_ = count * int64_t(sizeof(float));
    run_step_ = step * int64_t(sizeof(float));
    const int64_t lines = runs_ * (run_bytes_ / kLine + 1);
    lines_ = lines / steps + 1;
  }

  void step() {
    int64_t run = run_, offset = offset_;  // in registers
    for (int64_t i = 0; i < lines_ && run < runs_; ++i) {
      __builtin_prefetch(base_ + run * run_step_ + offset, 0, 2);
      offset += kLine;
      if (offset >= run_bytes_) {
        offset = 0;
        ++run;
      }
    }
    run_ = run;
    offset_ = offset;
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* base_ = nullptr;
  int64_t runs_ = 0;  // of consecutive bytes
  int64_t run_bytes_ = 0;
  int64_t run_step_ = 0;
  int64_t run_ = 0;
  int64_t offset_ = 0;
  int64_t lines_ = 0;  // a step
};

}  // namespace CMF_ISA
}  // namespace cmf

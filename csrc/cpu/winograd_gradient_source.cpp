#include "cpu/winograd_gradient_source.h"

#include "cpu/interleave_planes.h"

namespace cmf {
namespace CMF_ISA {

bool InputTiles::prepare(int outputs) {
  if (p_.x_channels_last) return true;
  return frame_.allocate(plan_.most_run_strips() * outputs * p_.width * kLanes<float>);
}

void InputTiles::fill(const TileRun& run, const PhaseVector& vector, int outputs) {
  if (p_.x_channels_last) return;
  constexpr int kV = kLanes<float>;
  const GradientAxis& axis = plan_.vertical();
  position_ = axis.last - run.strip_last * outputs + 1;
  const int64_t end = axis.last - run.strip_first * outputs + 1;
  const int64_t plane = p_.height * p_.width;
  const float* planes = x_ + (run.n * p_.image_channels + vector.first) * plane;
  for (int64_t position = position_; position < end; ++position) {
    const int64_t h = axis.pixel(position, vector.tap_height);
    if (h < 0 || h >= p_.height) continue;  // such rows are not read
    interleave_planes(planes + h * p_.width, plane, vector.lanes, p_.width,
                      frame_.data + (position - position_) * p_.width * kV);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

#include "cpu/few_channels.h"

namespace cmf {
namespace CMF_ISA {
bool few_channels_backward(const ConvActPool2dProblem&, const ConvBackwardTensors&, int) {
  return false;
}
}  // namespace CMF_ISA
}  // namespace cmf

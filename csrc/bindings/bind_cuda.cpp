#include "bindings/bind_cuda.h"

#include "cuda/device.h"

namespace cmf {

void bind_cuda(pybind11::module_& module) {
  module.def("driver_version", &CMF_ISA::driver_version,
             "The newest CUDA that the driver runs: 12040 is 12.4, 0 = no driver.");
  module.def("runtime_version", &CMF_ISA::runtime_version, "The CUDA of this build.");
  bind_cuda_act_pool2d(module);
  bind_cuda_conv(module);
  bind_cuda_gan_loss(module);
}

}  // namespace cmf

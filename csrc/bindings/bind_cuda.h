// The CUDA kernels for Python: bound once for the device (_native.cuda), once for the emulator.
#pragma once

#include <pybind11/pybind11.h>

namespace cmf {

void bind_cuda(pybind11::module_& module);
void bind_cuda_act_pool2d(pybind11::module_& module);
void bind_cuda_conv(pybind11::module_& module);
void bind_cuda_gan_loss(pybind11::module_& module);

}  // namespace cmf

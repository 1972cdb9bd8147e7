// What the binding files share.
#pragma once

#include <pybind11/pybind11.h>

#include "cpu/kernel_table.h"

namespace cmf {

// The kernels of the instruction set in use.
const KernelTable& kernels();

void bind_act_pool2d(pybind11::module_& module);
void bind_conv2d_small(pybind11::module_& module);
void bind_gan_loss(pybind11::module_& module);

}  // namespace cmf

// What the binding files share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "bindings/checked_pointer.h"
#include "cpu/kernel_table.h"

namespace cmf {

// The kernels of the instruction set in use.
const KernelTable& kernels();

constexpr int kMostThreads = 4096;

// Throws where `threads` is out of range.
void check_threads(int threads);

// The kernels of a convolution's algorithm; throws where there is none of that name.
const ConvKernels& conv_kernels(const std::string& algorithm);

// Throws where a y [N, P, Q, K] whose pixels are `y_pixel` elements apart can't exist.
void check_y_pixel_size(const ActPool2dProblem& problem, int64_t y_pixel);

void bind_act_pool2d(pybind11::module_& module);
void bind_batch_norm_act(pybind11::module_& module);
void bind_conv_act_pool2d(pybind11::module_& module);
void bind_conv_transposed2d(pybind11::module_& module);
void bind_conv2d_small(pybind11::module_& module);
void bind_gan_loss(pybind11::module_& module);
void bind_linear(pybind11::module_& module);
void bind_state_guard(pybind11::module_& module);

}  // namespace cmf

// The CUDA convolutions: checks every pointer against its problem, then launches on a stream.
//
// The problem's class is _native's own, for the CPU's kernels too.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/bind_cuda.h"
#include "bindings/checked_pointer.h"
#include "cuda/conv.h"
#include "cuda/device.h"

namespace py = pybind11;

namespace cmf {
namespace {

using namespace CMF_ISA;

constexpr int kWide = 16;  // bytes that are read at a time

void check_taken(const ConvActPool2dProblem& p, bool backward, int tile_rows = 0) {
  if (tile_rows != 0 && tile_rows != 64 && tile_rows != 128) {
    throw py::value_error("tile_rows must be 0, 64 or 128, got " + std::to_string(tile_rows));
  }
  if (const char* reason = conv_refusal(p, backward)) {
    throw py::value_error(std::string("the CUDA convolution can't take this problem: it ") +
                          reason);
  }
}

std::string refusal(const ConvActPool2dProblem& p, bool backward) {
  const char* reason = conv_refusal(p, backward);
  return reason ? reason : "";
}

void forward(const ConvActPool2dProblem& p, uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t y,
             uintptr_t index, uintptr_t preactivation, bool tf32, int tile_rows, int device,
             uintptr_t stream) {
  check_taken(p, false, tile_rows);
  const int size = p.pool.itemsize;
  if (index != 0 && p.pool.index_itemsize == 0) {
    throw py::value_error("index must be 0: this problem has none");
  }
  ConvForwardTensors t = {};
  t.x = checked_pointer("x", x, conv_reads_chunks(p) ? kWide : size, p.pool.batch > 0);
  t.w = checked_pointer("w", w, kWide, true);
  t.bias = checked_pointer("bias", bias, size, false);
  t.y = checked_pointer("y", y, size, p.pool.batch > 0);
  t.index = checked_pointer("index", index, kWide, false);
  t.preactivation = checked_pointer("preactivation", preactivation, size, false);
  if (p.pool.batch == 0) return;
  py::gil_scoped_release release;
  const DeviceGuard guard(device);
  conv_forward(p, t, tf32, tile_rows, reinterpret_cast<void*>(stream));
}

void pooled_gradient(const ConvActPool2dProblem& p, uintptr_t dy, uintptr_t saved, uintptr_t index,
                     uintptr_t gradient, uintptr_t partial, uintptr_t dbias, int device,
                     uintptr_t stream) {
  check_taken(p, true);
  const int size = p.pool.itemsize;
  const bool some = p.pool.batch > 0;
  const bool needs_saved = p.pool.saved == Saved::kOutput ||
                           p.pool.saved == Saved::kPreactivation || p.pool.saved == Saved::kInput;
  const void* dy_data = checked_pointer("dy", dy, size, some);
  const void* saved_data = checked_pointer("saved", saved, size, some && needs_saved);
  const bool masked = p.pool.saved == Saved::kMask;
  const void* index_data = checked_pointer("index", index, 1, some && masked && dbias != 0);
  void* gradient_data = checked_pointer("gradient", gradient, kWide, false);
  float* partial_data = static_cast<float*>(checked_pointer("partial", partial, 4, dbias != 0));
  void* dbias_data = checked_pointer("dbias", dbias, size, false);
  py::gil_scoped_release release;
  const DeviceGuard guard(device);
  conv_pooled_gradient(p, dy_data, needs_saved ? saved_data : nullptr, index_data, gradient_data,
                       partial_data, dbias_data, reinterpret_cast<void*>(stream));
}

void input_gradient(const ConvActPool2dProblem& p, uintptr_t gradient, uintptr_t index,
                    uintptr_t weights, uintptr_t dx, bool tf32, int tile_rows, int device,
                    uintptr_t stream) {
  check_taken(p, true, tile_rows);
  const bool some = p.pool.batch > 0;
  const void* gradient_data = checked_pointer("gradient", gradient, kWide, some);
  const void* index_data =
      checked_pointer("index", index, kWide, some && p.pool.index_itemsize != 0);
  const void* weights_data = checked_pointer("weights", weights, kWide, true);
  void* dx_data = checked_pointer("dx", dx, p.pool.itemsize, some);
  if (!some) return;
  py::gil_scoped_release release;
  const DeviceGuard guard(device);
  conv_input_gradient(p, gradient_data, index_data, weights_data, dx_data, tf32, tile_rows,
                      reinterpret_cast<void*>(stream));
}

void weight_gradient(const ConvActPool2dProblem& p, uintptr_t gradient, uintptr_t index,
                     uintptr_t x, uintptr_t partial, uintptr_t dw, int64_t stride_filter,
                     int64_t stride_channel, int64_t stride_tap, bool tf32, int device,
                     uintptr_t stream) {
  check_taken(p, true);
  const bool some = p.pool.batch > 0;
  const int size = p.pool.itemsize;
  const void* gradient_data = checked_pointer("gradient", gradient, kWide, some);
  const void* index_data =
      checked_pointer("index", index, kWide, some && p.pool.index_itemsize != 0);
  const void* x_data = checked_pointer("x", x, conv_reads_chunks(p) ? kWide : size, some);
  float* partial_data = static_cast<float*>(checked_pointer("partial", partial, 4, true));
  void* dw_data = checked_pointer("dw", dw, size, true);
  const int64_t strides[] = {stride_filter, stride_channel, stride_tap};
  py::gil_scoped_release release;
  const DeviceGuard guard(device);
  conv_weight_gradient(p, gradient_data, index_data, x_data, partial_data, dw_data, strides, tf32,
                       reinterpret_cast<void*>(stream));
}

}  // namespace

void bind_cuda_conv(py::module_& module) {
  module.def("conv_refusal", &refusal);
  module.def("conv_reads_chunks", &conv_reads_chunks);
  module.def("conv_filters_row", &conv_filters_row);
  module.def("conv_weight_splits", &conv_weight_splits);
  module.def("conv_bias_rows", &conv_bias_rows);
  module.def("conv_forward", &forward);
  module.def("conv_pooled_gradient", &pooled_gradient);
  module.def("conv_input_gradient", &input_gradient);
  module.def("conv_weight_gradient", &weight_gradient);
}

}  // namespace cmf

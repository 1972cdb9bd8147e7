// The fused convolutions: checks every pointer against its problem, then calls the algorithm's
// kernel without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <new>
#include <string>
#include <vector>

#include "bindings/bind.h"

namespace py = pybind11;

namespace cmf {
namespace {

ConvActPool2dProblem make_problem(const ActPool2dProblem& pool, int64_t in_channels, int64_t height,
                                  int64_t width, int64_t kernel_height, int64_t kernel_width,
                                  int64_t stride_height, int64_t stride_width, int64_t pad_height,
                                  int64_t pad_width, int64_t dilation_height,
                                  int64_t dilation_width, int64_t groups, bool x_channels_last) {
  ConvActPool2dProblem p = {};
  p.in_channels = in_channels;
  p.image_channels = in_channels;
  p.height = height;
  p.width = width;
  p.kernel_height = kernel_height;
  p.kernel_width = kernel_width;
  p.stride_height = stride_height;
  p.stride_width = stride_width;
  p.pad_height = pad_height;
  p.pad_width = pad_width;
  p.dilation_height = dilation_height;
  p.dilation_width = dilation_width;
  p.groups = groups;
  p.x_channels_last = x_channels_last;
  p.pool = pool;
  check_conv_act_pool2d_problem(p);
  return p;
}

// Why the algorithm can't take this problem; "" where it can.
std::string refusal(const std::string& algorithm, const ConvActPool2dProblem& p, bool backward) {
  const ConvKernels& k = conv_kernels(algorithm);
  if (backward ? !k.backward : !k.forward) return "this build has no such kernel";
  const char* reason = k.refusal(p, backward);
  return reason ? reason : "";
}

const ConvKernels& accepting_kernels(const std::string& algorithm, const ConvActPool2dProblem& p,
                                     bool backward) {
  const std::string reason = refusal(algorithm, p, backward);
  if (!reason.empty()) {
    throw py::value_error("algorithm '" + algorithm + "' can't take this problem: " + reason);
  }
  return conv_kernels(algorithm);
}

// How many elements the algorithm's transformed weights take; 0 where it reads w as it is.
int64_t prepared_size(const std::string& algorithm, const ConvActPool2dProblem& p) {
  const ConvKernels& k = accepting_kernels(algorithm, p, false);
  return k.prepared_size ? k.prepared_size(p) : 0;
}

// Whether `forward` needs none of them, but for speed where the weights stay the same.
bool transforms_weights(const std::string& algorithm, const ConvActPool2dProblem& p, int threads) {
  check_threads(threads);
  const ConvKernels& k = accepting_kernels(algorithm, p, false);
  return k.transforms_weights && k.transforms_weights(p, threads);
}

// Whether that is as fast. `forward` takes a w_scale then.
bool reads_weights(const std::string& algorithm, const ConvActPool2dProblem& p, int threads) {
  check_threads(threads);
  const ConvKernels& k = accepting_kernels(algorithm, p, false);
  return k.reads_weights && k.reads_weights(p, threads);
}

void prepare(const std::string& algorithm, const ConvActPool2dProblem& p, uintptr_t w,
             uintptr_t prepared, int threads) {
  check_threads(threads);
  const ConvKernels& k = accepting_kernels(algorithm, p, false);
  if (!k.prepare) throw py::value_error("algorithm '" + algorithm + "' prepares no weights");
  const void* w_data = checked_pointer("w", w, p.pool.itemsize, true);
  void* prepared_data = checked_pointer("prepared", prepared, p.pool.itemsize, true);
  bool success;
  {
    py::gil_scoped_release release;
    success = k.prepare(p, w_data, prepared_data, threads);
  }
  if (!success) throw std::bad_alloc();
}

// Of a y that is some channels of a larger NHWC tensor.
void check_y_pixel(const std::string& algorithm, const ActPool2dProblem& p, int64_t y_pixel,
                   bool tracks) {
  if (algorithm != "pointwise" && algorithm != "winograd" && algorithm != "patches") {
    throw py::value_error("y_pixel must be 0: algorithm '" + algorithm + "' writes dense tensors");
  }
  if (!p.channels_last || tracks) {
    throw py::value_error("y_pixel must be 0 for contiguous tensors, and where there is an index");
  }
  check_y_pixel_size(p, y_pixel);
}

// Of an x that is some channels of a tensor of more.
void check_x_channels(const std::string& algorithm, const ConvActPool2dProblem& p,
                      int64_t x_channels) {
  if (algorithm != "pointwise" || p.groups != 1) {
    throw py::value_error("x_channels must be 0, but with algorithm 'pointwise' of one group");
  }
  int64_t elements = 0;
  if (x_channels < p.in_channels ||
      __builtin_mul_overflow(p.pool.batch * p.height, p.width, &elements) ||
      __builtin_mul_overflow(elements, x_channels, &elements) ||
      elements > INT64_MAX / p.pool.itemsize) {
    throw py::value_error("x_channels must be at least C and give a tensor that can exist");
  }
}

// Why kernels that take the problem can't add a residual in it; null where they can.
const char* why_no_residual(const ConvKernels& k, const ConvActPool2dProblem& p) {
  return k.residual_refusal ? k.residual_refusal(p) : "takes no residual";
}

std::string residual_refusal(const std::string& algorithm, const ConvActPool2dProblem& p) {
  const char* reason = why_no_residual(accepting_kernels(algorithm, p, false), p);
  return reason ? reason : "";
}

void check_residual(const std::string& algorithm, const ConvKernels& k,
                    const ConvActPool2dProblem& p, int64_t y_pixel, bool tracks) {
  if (const char* reason = why_no_residual(k, p)) {
    throw py::value_error("residual must be 0: algorithm '" + algorithm + "' " + reason);
  }
  if (tracks || y_pixel != 0) {
    throw py::value_error("residual must be 0 where there is an index or a y_pixel");
  }
}

void forward(const std::string& algorithm, const ConvActPool2dProblem& p, uintptr_t x, uintptr_t w,
             uintptr_t prepared, uintptr_t bias, uintptr_t y, uintptr_t index,
             uintptr_t preactivation, int threads, int64_t y_pixel, uintptr_t x_scale,
             uintptr_t x_shift, bool w_channels_last, uintptr_t residual, uintptr_t w_scale,
             int64_t x_channels) {
  check_threads(threads);
  const ConvKernels& k = accepting_kernels(algorithm, p, false);
  if (residual != 0) check_residual(algorithm, k, p, y_pixel, index != 0);
  if (y_pixel != 0) check_y_pixel(algorithm, p.pool, y_pixel, index != 0);
  const int size = p.pool.itemsize;
  const bool some = p.pool.batch > 0;
  if (index != 0 && p.pool.index_itemsize == 0) {
    throw py::value_error("index must be 0: this problem has none");
  }
  if (preactivation != 0 && (p.pool.saved != Saved::kPreactivation || index == 0)) {
    throw py::value_error("preactivation must be 0 for this problem, or come with an index");
  }
  if ((x_scale == 0 && x_shift != 0) || (x_scale != 0 && algorithm != "pointwise")) {
    throw py::value_error("x_shift comes with x_scale, and both with algorithm 'pointwise' alone");
  }
  if (x_scale != 0 && p.groups != 1) throw py::value_error("x_scale must be 0 for groups");
  if (w_channels_last && (prepared != 0 || !k.transforms_weights)) {
    throw py::value_error("w_channels_last must be False, but where the algorithm transforms w");
  }
  if (x_channels != 0) check_x_channels(algorithm, p, x_channels);
  if (w_scale != 0 && (prepared != 0 || !k.reads_weights || !k.reads_weights(p, 1))) {
    throw py::value_error("w_scale must be 0, but where the algorithm reads w");
  }
  ConvForwardTensors t = {};
  t.w_channels_last = w_channels_last;
  t.w_scale = checked_pointer("w_scale", w_scale, size, false);
  t.x_scale = checked_pointer("x_scale", x_scale, size, false);
  t.x_shift = checked_pointer("x_shift", x_shift, size, false);
  t.residual = checked_pointer("residual", residual, size, false);
  t.y_pixel = y_pixel;
  t.x = checked_pointer("x", x, size, some);
  t.w = checked_pointer("w", w, size, some);
  // looked at where there are none alone: the check is as long as a small call
  const bool itself = prepared == 0 && k.transforms_weights && k.transforms_weights(p, 1);
  t.prepared = checked_pointer("prepared", prepared, size, some && k.prepare && !itself);
  t.bias = checked_pointer("bias", bias, size, false);
  t.y = checked_pointer("y", y, size, some);
  t.index =
      checked_pointer("index", index, p.pool.index_itemsize ? p.pool.index_itemsize : 1, false);
  t.preactivation = checked_pointer("preactivation", preactivation, size, false);
  if (!some) return;
  bool success;
  {
    py::gil_scoped_release release;
    if (x_channels == 0) {
      success = k.forward(p, t, threads);
    } else {
      ConvActPool2dProblem part = p;
      part.image_channels = x_channels;
      success = k.forward(part, t, threads);
    }
  }
  if (!success) throw std::bad_alloc();
}

// Whether dw holds, or must be computed some other way: ConvBackwardTensors::dw_spoilt.
bool backward(const std::string& algorithm, const ConvActPool2dProblem& p, uintptr_t dy,
              uintptr_t saved, uintptr_t index, uintptr_t x, uintptr_t w, uintptr_t bias,
              uintptr_t dx, uintptr_t dw, uintptr_t dbias, int threads, bool w_channels_last) {
  check_threads(threads);
  const ConvKernels& k = accepting_kernels(algorithm, p, true);
  const int size = p.pool.itemsize;
  const bool some = p.pool.batch > 0;
  // kInput is the convolution's output, which never exists as a whole: it is computed again
  const bool needs_saved = p.pool.saved == Saved::kOutput || p.pool.saved == Saved::kPreactivation;
  const int index_size = p.pool.index_itemsize ? p.pool.index_itemsize : 1;
  if (w_channels_last && !k.transforms_weights) {
    throw py::value_error("w_channels_last must be False for algorithm '" + algorithm + "'");
  }
  ConvBackwardTensors t = {};
  t.w_channels_last = w_channels_last;
  t.dy = checked_pointer("dy", dy, size, some);
  t.saved = checked_pointer("saved", saved, size, some && needs_saved);
  t.index = checked_pointer("index", index, index_size, some && p.pool.index_itemsize != 0);
  const bool again = p.pool.saved == Saved::kInput;
  t.x = checked_pointer("x", x, size, some && (dw != 0 || again));
  t.w = checked_pointer("w", w, size, some && (dx != 0 || again));
  t.bias = checked_pointer("bias", bias, size, false);
  t.dx = checked_pointer("dx", dx, size, false);
  t.dw = checked_pointer("dw", dw, size, false);
  t.dbias = checked_pointer("dbias", dbias, size, false);
  bool spoilt = false;
  t.dw_spoilt = &spoilt;
  if (!some) throw py::value_error("batch must not be 0 here");
  bool success;
  {
    py::gil_scoped_release release;
    success = k.backward(p, t, threads);
  }
  if (!success) throw std::bad_alloc();
  return !spoilt;
}

void transpose_matrices(uintptr_t source, uintptr_t target, int64_t count, int64_t rows,
                        int64_t columns, int threads) {
  check_threads(threads);
  int64_t size = 0;
  if (count < 0 || rows < 0 || columns < 0 || __builtin_mul_overflow(rows, columns, &size) ||
      __builtin_mul_overflow(size, count, &size) || size > INT64_MAX / int64_t(sizeof(float))) {
    throw py::value_error("count, rows and columns must be sizes of matrices that can exist");
  }
  const void* from = checked_pointer("source", source, sizeof(float), size > 0);
  void* to = checked_pointer("target", target, sizeof(float), size > 0);
  py::gil_scoped_release release;
  kernels().transpose_matrices(static_cast<const float*>(from), static_cast<float*>(to), count,
                               rows, columns, threads);
}

// One hash of several blocks, in their order: each alone costs a call.
uint64_t hash_blocks(const std::vector<uintptr_t>& data, const std::vector<int64_t>& bytes,
                     int threads) {
  check_threads(threads);
  if (data.size() != bytes.size()) throw py::value_error("data and bytes must be as many");
  std::vector<const void*> sources(data.size());
  int64_t all = 0;
  for (size_t i = 0; i < data.size(); ++i) {
    if (bytes[i] < 0 || __builtin_add_overflow(all, bytes[i], &all)) {
      throw py::value_error("bytes must not be negative, nor more than memory can have");
    }
    sources[i] = checked_pointer("data", data[i], 1, bytes[i] > 0);
  }
  py::gil_scoped_release release;
  return kernels().hash_blocks(sources.data(), bytes.data(), static_cast<int64_t>(data.size()),
                               threads);
}

uint64_t hash_bytes(uintptr_t data, int64_t bytes, int threads) {
  return hash_blocks({data}, {bytes}, threads);
}

}  // namespace

const ConvKernels& conv_kernels(const std::string& algorithm) {
  const int32_t code = conv_algorithm_from_name(algorithm.c_str());
  if (code < 0) throw py::value_error("unknown algorithm '" + algorithm + "'");
  return kernels().conv_act_pool2d[code];
}

void check_y_pixel_size(const ActPool2dProblem& p, int64_t y_pixel) {
  int64_t elements = 0;
  if (y_pixel < p.channels ||
      __builtin_mul_overflow(p.batch * p.out_height, p.out_width, &elements) ||
      __builtin_mul_overflow(elements, y_pixel, &elements) || elements > INT64_MAX / p.itemsize) {
    throw py::value_error("y_pixel must be at least K and give a tensor that can exist");
  }
}

void bind_conv_act_pool2d(py::module_& module) {
  py::class_<ConvActPool2dProblem>(module, "ConvActPool2dProblem",
                                   "Shapes of one convolution with its activation and pooling.")
      .def(py::init(&make_problem), py::kw_only(), py::arg("pool"), py::arg("in_channels"),
           py::arg("height"), py::arg("width"), py::arg("kernel_height"), py::arg("kernel_width"),
           py::arg("stride_height"), py::arg("stride_width"), py::arg("pad_height"),
           py::arg("pad_width"), py::arg("dilation_height"), py::arg("dilation_width"),
           py::arg("groups"), py::arg("x_channels_last"));
  module.def("conv_act_pool2d_refusal", &refusal);
  module.def("conv_act_pool2d_residual_refusal", &residual_refusal);
  module.def("conv_act_pool2d_prepared_size", &prepared_size);
  module.def("conv_act_pool2d_transforms_weights", &transforms_weights);
  module.def("conv_act_pool2d_reads_weights", &reads_weights);
  module.def("conv_act_pool2d_prepare", &prepare);
  module.def("conv_act_pool2d_forward", &forward, py::arg("algorithm"), py::arg("problem"),
             py::arg("x"), py::arg("w"), py::arg("prepared"), py::arg("bias"), py::arg("y"),
             py::arg("index"), py::arg("preactivation"), py::arg("threads"), py::arg("y_pixel") = 0,
             py::arg("x_scale") = 0, py::arg("x_shift") = 0, py::arg("w_channels_last") = false,
             py::arg("residual") = 0, py::arg("w_scale") = 0, py::arg("x_channels") = 0);
  module.def("conv_act_pool2d_backward", &backward, py::arg("algorithm"), py::arg("problem"),
             py::arg("dy"), py::arg("saved"), py::arg("index"), py::arg("x"), py::arg("w"),
             py::arg("bias"), py::arg("dx"), py::arg("dw"), py::arg("dbias"), py::arg("threads"),
             py::arg("w_channels_last") = false);
  module.def("transpose_matrices", &transpose_matrices);
  module.def("hash_bytes", &hash_bytes);
  module.def("hash_blocks", &hash_blocks);
}

}  // namespace cmf

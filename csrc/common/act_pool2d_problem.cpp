#include "common/act_pool2d_problem.h"

#include <string.h>

#include "common/check.h"

// the scalar predicates alone are used here, from the copy of the instruction set that runs
// everywhere
#define CMF_ISA baseline
#include "common/activation.h"

namespace cmf {
namespace {

const char* const kActivationNames[] = {
    "identity", "relu",      "leaky_relu", "relu6",   "elu",      "silu",
    "gelu",     "gelu_tanh", "tanh",       "sigmoid", "softplus", "hardswish",
};
const char* const kPoolNames[] = {"max", "avg", "none"};
const char* const kDTypeNames[] = {"float32", "float64", "float16", "bfloat16"};
const char* const kSavedNames[] = {"nothing", "output", "preactivation", "input", "mask"};
const int32_t kItemSizes[] = {4, 8, 2, 2};

template <int count>
int32_t find(const char* const (&names)[count], const char* name) {
  for (int32_t i = 0; i < count; ++i) {
    if (strcmp(names[i], name) == 0) return i;
  }
  return -1;
}

constexpr int64_t kLargest = INT64_C(1) << 40;
constexpr int kMaskBits = 8;  // a mask is one byte
constexpr int64_t kByteIndices = 255;

void check_axis(const char* name, int64_t length, int64_t out, int64_t size, int64_t stride,
                int64_t pad) {
  const int64_t reach = length + 2 * pad - size;
  int64_t floor_out = reach < 0 ? 0 : reach / stride + 1;
  // ceil_mode may add one window, if that starts inside the input or its left padding
  const bool one_more = out == floor_out + 1 && (out - 1) * stride < length + pad && size > 0;
  if (out < 1 || (out != floor_out && !one_more)) {
    throw_invalid(std::string("out_") + name + " must be " + std::to_string(floor_out) +
                  " for these windows, got " + std::to_string(out));
  }
}

bool piecewise_linear(int32_t activation) {
  using A = baseline::Activation;
  const A a = static_cast<A>(activation);
  return a == A::kRelu || a == A::kLeakyRelu || a == A::kRelu6;
}

Saved saved_for(const ActPool2dProblem& p) {
  const auto activation = static_cast<baseline::Activation>(p.activation);
  if (activation == baseline::Activation::kIdentity) return Saved::kNothing;
  const bool from_output = baseline::derives_from_output(activation, p.activation_param);
  if (p.pool == Pool::kAvg) {
    const bool fits = p.pool_height * p.pool_width <= kMaskBits;
    return piecewise_linear(p.activation) && from_output && fits ? Saved::kMask : Saved::kInput;
  }
  if (from_output) return Saved::kOutput;
  return p.pool == Pool::kMax ? Saved::kPreactivation : Saved::kInput;
}

}  // namespace

int32_t activation_from_name(const char* name) { return find(kActivationNames, name); }
int32_t pool_from_name(const char* name) { return find(kPoolNames, name); }
int32_t dtype_from_name(const char* name) { return find(kDTypeNames, name); }
const char* saved_name(Saved saved) { return kSavedNames[static_cast<int32_t>(saved)]; }

void complete_act_pool2d_problem(ActPool2dProblem* problem) {
  ActPool2dProblem& p = *problem;
  check_range("activation", p.activation, 0, 11);
  check_range("dtype", p.dtype, 0, 3);
  check_range("pool", static_cast<int32_t>(p.pool), 0, 2);
  check_range("batch", p.batch, 0, kLargest);
  check_range("channels", p.channels, 1, kLargest);
  check_range("height", p.height, 1, kLargest);
  check_range("width", p.width, 1, kLargest);
  check_range("pool_height", p.pool_height, 1, INT32_MAX);
  check_range("pool_width", p.pool_width, 1, INT32_MAX);
  check_range("pool_stride_height", p.pool_stride_height, 1, INT32_MAX);
  check_range("pool_stride_width", p.pool_stride_width, 1, INT32_MAX);
  check_range("pool_pad_height", p.pool_pad_height, 0, p.pool_height / 2);
  check_range("pool_pad_width", p.pool_pad_width, 0, p.pool_width / 2);
  if (p.pool == Pool::kNone) {
    const bool trivial = p.pool_height == 1 && p.pool_width == 1 && p.pool_stride_height == 1 &&
                         p.pool_stride_width == 1;
    if (!trivial) throw_invalid("pool 'none' must have windows of 1×1 at stride 1");
  }
  check_axis("height", p.height, p.out_height, p.pool_height, p.pool_stride_height,
             p.pool_pad_height);
  check_axis("width", p.width, p.out_width, p.pool_width, p.pool_stride_width, p.pool_pad_width);
  p.itemsize = kItemSizes[p.dtype];
  p.image_channels = p.channels;
  check_bytes("x", p.batch, p.channels, p.height, p.width, 8);
  check_bytes("y", p.batch, p.channels, p.out_height, p.out_width, 8);
  // an index names a position in a window, a 32-bit integer at most
  if (p.pool == Pool::kMax && p.pool_height * p.pool_width > INT32_MAX) {
    throw_invalid("pool_height × pool_width must be below 2**31 for max pooling");
  }
  const auto activation = static_cast<baseline::Activation>(p.activation);
  p.monotone = baseline::is_monotone(activation, p.activation_param);
  p.saved = saved_for(p);
  p.index_itemsize = 0;
  if (p.pool == Pool::kMax) p.index_itemsize = p.pool_height * p.pool_width <= kByteIndices ? 1 : 4;
  if (p.saved == Saved::kMask) p.index_itemsize = 1;
}

}  // namespace cmf

// What test_act_pool2d.cpp compares with: activations in double, and guarded arrays of any type.
#pragma once

#include <math.h>
#include <stdint.h>

#include <vector>

#include "common/activation.h"
#include "cpu/half.h"

namespace cmf {
namespace test {

using baseline::Activation;
using baseline::DType;

// Elements of any storage type between two margins that nothing may write to.
class Array {
 public:
  static constexpr size_t kMargin = 64;
  static constexpr unsigned char kSentinel = 0xa5;

  Array(int64_t count, int itemsize)
      : itemsize_(itemsize),
        size_(static_cast<size_t>(count) * static_cast<size_t>(itemsize)),
        bytes_(size_ + 2 * kMargin, kSentinel) {}
  void* data() { return bytes_.data() + kMargin; }
  const void* data() const { return bytes_.data() + kMargin; }
  bool margins_are_whole() const {
    for (size_t i = 0; i < kMargin; ++i) {
      if (bytes_[i] != kSentinel || bytes_[kMargin + size_ + i] != kSentinel) return false;
    }
    return true;
  }
  bool equals(const Array& other) const { return bytes_ == other.bytes_; }

  double get(DType dtype, int64_t i) const {
    switch (dtype) {
      case DType::kFloat32:
        return static_cast<const float*>(data())[i];
      case DType::kFloat64:
        return static_cast<const double*>(data())[i];
      case DType::kFloat16:
        return baseline::to_float(static_cast<const baseline::Half*>(data())[i]);
      case DType::kBFloat16:
        break;
    }
    return baseline::to_float(static_cast<const baseline::BFloat16*>(data())[i]);
  }
  void set(DType dtype, int64_t i, double value) {
    const float rounded = static_cast<float>(value);
    switch (dtype) {
      case DType::kFloat32:
        static_cast<float*>(data())[i] = rounded;
        return;
      case DType::kFloat64:
        static_cast<double*>(data())[i] = value;
        return;
      case DType::kFloat16:
        static_cast<baseline::Half*>(data())[i] = baseline::to_half(rounded);
        return;
      case DType::kBFloat16:
        static_cast<baseline::BFloat16*>(data())[i] = baseline::to_bfloat16(rounded);
        return;
    }
  }
  int64_t code(int64_t i) const {
    return itemsize_ == 1 ? static_cast<const uint8_t*>(data())[i]
                          : static_cast<const int32_t*>(data())[i];
  }

 private:
  int itemsize_;
  size_t size_;
  std::vector<unsigned char> bytes_;
};

inline double activate(Activation activation, double z, double param) {
  switch (activation) {
    case Activation::kIdentity:
      return z;
    case Activation::kRelu:
      return z < 0 ? 0 : z;
    case Activation::kLeakyRelu:
      return z > 0 ? z : z * param;
    case Activation::kRelu6:
      return z < 0 ? 0 : z > 6 ? 6 : z;
    case Activation::kElu:
      return z > 0 ? z : param * expm1(z);
    case Activation::kSilu:
      return z / (1 + exp(-z));
    case Activation::kGelu:
      return z * 0.5 * erfc(-z * sqrt(0.5));
    case Activation::kGeluTanh:
      return z * 0.5 * (1 + tanh(0.79788456080286535588 * (z + 0.044715 * z * z * z)));
    case Activation::kTanh:
      return tanh(z);
    case Activation::kSigmoid:
      return 1 / (1 + exp(-z));
    case Activation::kSoftplus:
      return z * param > 20 ? z : log1p(exp(z * param)) / param;
    case Activation::kHardswish:
      break;
  }
  return z * (z < -3 ? 0 : z > 3 ? 6 : z + 3) / 6;
}

inline double derivative(Activation activation, double z, double param) {
  switch (activation) {
    case Activation::kIdentity:
      return 1;
    case Activation::kRelu:
      return z > 0;
    case Activation::kLeakyRelu:
      return z > 0 ? 1 : param;
    case Activation::kRelu6:
      return z > 0 && z < 6;
    case Activation::kElu:
      return z > 0 ? 1 : param * exp(z);
    case Activation::kTanh:
      return 1 - tanh(z) * tanh(z);
    case Activation::kSigmoid:
      return activate(activation, z, param) * (1 - activate(activation, z, param));
    case Activation::kSoftplus:
      return z * param > 20 ? 1 : 1 / (1 + exp(-z * param));
    case Activation::kHardswish:
      return z <= -3 ? 0 : z >= 3 ? 1 : z / 3 + 0.5;
    case Activation::kSilu:
    case Activation::kGelu:
    case Activation::kGeluTanh:
      break;
  }
  // smooth: a central difference of fourth order, good to about 1e-12
  const double h = 1e-3;
  const auto f = [&](double at) { return activate(activation, at, param); };
  return (8 * (f(z + h) - f(z - h)) - (f(z + 2 * h) - f(z - 2 * h))) / (12 * h);
}

// |error| <= bound * (1 + |expected|): see tests/test_act_pool2d_native.py.
inline double forward_bound(DType dtype) {
  const double bounds[] = {1e-6, 1e-13, 0x1p-11, 0x1p-8};
  return bounds[static_cast<int>(dtype)];
}
inline double backward_bound(DType dtype) {
  const double bounds[] = {2e-6, 1e-11, 0x1p-8, 0x1p-5};
  return bounds[static_cast<int>(dtype)];
}
inline bool is_near(double actual, double expected, double bound) {
  if (isnan(expected)) return isnan(actual);
  return actual == expected || fabs(actual - expected) <= bound * (1 + fabs(expected));
}

}  // namespace test
}  // namespace cmf

#include "tests/conv_case.h"

#include <stddef.h>

#if !defined(CMF_ISA)
#define CMF_ISA baseline
#endif
#include "common/activation.h"
#include "cpu/kernel_table.h"
#include "tests/check.h"

namespace cmf {
namespace test {
namespace {

int64_t out_size(int64_t length, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  return (length + 2 * pad - dilation * (taps - 1) - 1) / stride + 1;
}

// Multiples of 1/8 below 4: sums of their products are exact in float, in any order.
std::vector<float> eighths(int64_t count, uint64_t* state) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = static_cast<float>(static_cast<int>(next_random(state) % 64) - 32) / 8.0f;
  }
  return values;
}

}  // namespace

ConvActPool2dProblem conv_problem(const ConvShape& s, const ConvAfter& after, bool x_channels_last,
                                  bool y_channels_last) {
  ConvActPool2dProblem p = {};
  p.in_channels = p.image_channels = s.channels, p.height = s.height, p.width = s.width;
  p.kernel_height = s.kernel_height, p.kernel_width = s.kernel_width;
  p.stride_height = p.stride_width = s.stride;
  p.pad_height = p.pad_width = s.pad;
  p.dilation_height = p.dilation_width = s.dilation;
  p.groups = s.groups, p.x_channels_last = x_channels_last;
  ActPool2dProblem& pool = p.pool;
  pool.batch = s.batch, pool.channels = s.filters;
  pool.height = out_size(s.height, s.kernel_height, s.stride, s.pad, s.dilation);
  pool.width = out_size(s.width, s.kernel_width, s.stride, s.pad, s.dilation);
  pool.pool_height = pool.pool_width = after.size;
  pool.pool_stride_height = pool.pool_stride_width = after.stride;
  pool.out_height = out_size(pool.height, after.size, after.stride, 0, 1);
  pool.out_width = out_size(pool.width, after.size, after.stride, 0, 1);
  pool.activation = after.activation, pool.activation_param = after.param;
  pool.pool = after.pool, pool.channels_last = y_channels_last;
  complete_act_pool2d_problem(&pool);
  check_conv_act_pool2d_problem(p);
  return p;
}

ConvCase::ConvCase(const KernelTable& kernels, ConvAlgorithm algorithm, const ConvShape& s,
                   const ConvAfter& after, bool x_channels_last, bool y_channels_last)
    : kernels_(kernels),
      algorithm_(kernels.conv_act_pool2d[static_cast<int>(algorithm)]),
      p_(conv_problem(s, after, x_channels_last, y_channels_last)) {
  uint64_t state = 11;
  x_ = eighths(s.batch * s.channels * s.height * s.width, &state);
  w_ = eighths(s.filters * (s.channels / s.groups) * s.kernel_height * s.kernel_width, &state);
  bias_ = eighths(s.filters, &state);
  set_context("%s x [%d,%d,%d,%d] w [%d,%dx%d] stride %d pad %d dilation %d act %d pool %d %s %s",
              kernels.isa, int(s.batch), int(s.channels), int(s.height), int(s.width),
              int(s.filters), int(s.kernel_height), int(s.kernel_width), int(s.stride), int(s.pad),
              int(s.dilation), int(after.activation), int(after.pool),
              x_channels_last ? "NHWC" : "NCHW", y_channels_last ? "NHWC" : "NCHW");
}

int64_t ConvCase::x_at(int64_t n, int64_t c, int64_t h, int64_t w) const {
  if (p_.x_channels_last) return ((n * p_.height + h) * p_.width + w) * p_.in_channels + c;
  return ((n * p_.in_channels + c) * p_.height + h) * p_.width + w;
}

int64_t ConvCase::z_at(int64_t n, int64_t k, int64_t h, int64_t w) const {
  const ActPool2dProblem& pool = p_.pool;
  if (pool.channels_last) return ((n * pool.height + h) * pool.width + w) * pool.channels + k;
  return ((n * pool.channels + k) * pool.height + h) * pool.width + w;
}

template <class Body>
void ConvCase::each_product(int64_t n, int64_t k, int64_t h, int64_t w, const Body& body) const {
  const int64_t channels = p_.in_channels / p_.groups;
  const int64_t group = k / (p_.pool.channels / p_.groups);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t r = 0; r < p_.kernel_height; ++r) {
      for (int64_t s = 0; s < p_.kernel_width; ++s) {
        const int64_t y = h * p_.stride_height - p_.pad_height + r * p_.dilation_height;
        const int64_t x = w * p_.stride_width - p_.pad_width + s * p_.dilation_width;
        if (y < 0 || y >= p_.height || x < 0 || x >= p_.width) continue;
        const int64_t tap = ((k * channels + c) * p_.kernel_height + r) * p_.kernel_width + s;
        body(static_cast<size_t>(x_at(n, group * channels + c, y, x)), static_cast<size_t>(tap));
      }
    }
  }
}

double ConvCase::convolve(int64_t n, int64_t k, int64_t h, int64_t w) const {
  double sum = bias_[static_cast<size_t>(k)];
  each_product(n, k, h, w,
               [&](size_t x, size_t tap) { sum += static_cast<double>(x_[x]) * w_[tap]; });
  return sum;
}

std::vector<float> ConvCase::output() const {
  const ActPool2dProblem& pool = p_.pool;
  std::vector<float> z(static_cast<size_t>(pool.batch * pool.channels * pool.height * pool.width));
  for (int64_t n = 0; n < pool.batch; ++n) {
    for (int64_t k = 0; k < pool.channels; ++k) {
      for (int64_t h = 0; h < pool.height; ++h) {
        for (int64_t w = 0; w < pool.width; ++w) {
          z[static_cast<size_t>(z_at(n, k, h, w))] = static_cast<float>(convolve(n, k, h, w));
        }
      }
    }
  }
  return z;
}

void ConvCase::check_forward() {
  CHECK(algorithm_.refusal(p_, false) == nullptr);
  check_forward(nullptr);
  if (!algorithm_.residual_refusal || algorithm_.residual_refusal(p_)) return;
  uint64_t state = 17;
  const ActPool2dProblem& pool = p_.pool;
  const std::vector<float> residual =
      eighths(pool.batch * pool.channels * pool.height * pool.width, &state);
  check_forward(&residual);
}

void ConvCase::check_forward(const std::vector<float>* residual) {
  const ActPool2dProblem& pool = p_.pool;
  std::vector<float> z = output();
  for (size_t i = 0; residual && i < z.size(); ++i) z[i] += (*residual)[i];
  const size_t count = static_cast<size_t>(pool.batch * pool.channels * pool.out_height) *
                       static_cast<size_t>(pool.out_width);
  std::vector<float> expected(count), y(count);
  std::vector<uint8_t> expected_index(count), index(count);
  const bool tracks = pool.pool == Pool::kMax;
  CHECK(kernels_.act_pool2d_forward(pool, z.data(), nullptr, expected.data(),
                                    tracks ? expected_index.data() : nullptr, nullptr, 1));
  const int64_t size = algorithm_.prepared_size ? algorithm_.prepared_size(p_) : 0;
  std::vector<float> prepared(static_cast<size_t>(size));
  for (int threads : {1, 2, 5}) {
    if (size) CHECK(algorithm_.prepare(p_, w_.data(), prepared.data(), threads));
    y.assign(count, -99.0f);
    index.assign(count, 255);
    ConvForwardTensors tensors = {};
    tensors.x = x_.data();
    tensors.w = w_.data();
    tensors.prepared = size ? prepared.data() : nullptr;
    tensors.bias = bias_.data();
    tensors.y = y.data();
    tensors.index = tracks ? index.data() : nullptr;
    tensors.residual = residual ? residual->data() : nullptr;
    CHECK(algorithm_.forward(p_, tensors, threads));
    size_t wrong = 0;
    for (size_t i = 0; i < count; ++i) {
      if (!(y[i] == expected[i]) || (tracks && index[i] != expected_index[i])) ++wrong;
    }
    CHECK_THAT(wrong == 0, "%zu of %zu elements differ with %d threads", wrong, count, threads);
  }
}

double ConvCase::derivative(float y) const {
  switch (static_cast<baseline::Activation>(p_.pool.activation)) {
    case baseline::Activation::kRelu:
      return y > 0 ? 1 : 0;
    case baseline::Activation::kRelu6:
      return y > 0 && y < 6 ? 1 : 0;
    case baseline::Activation::kLeakyRelu:
      return y > 0 ? 1 : p_.pool.activation_param;
    default:
      return 1;
  }
}

void ConvCase::check_backward() {
  const ActPool2dProblem& pool = p_.pool;
  CHECK(algorithm_.refusal(p_, true) == nullptr);
  const std::vector<float> z = output();
  std::vector<float> y(z.size());
  CHECK(kernels_.act_pool2d_forward(pool, z.data(), nullptr, y.data(), nullptr, nullptr, 1));
  uint64_t state = 13;
  const std::vector<float> dy = eighths(static_cast<int64_t>(y.size()), &state);
  std::vector<double> dx(x_.size()), dw(w_.size()), dbias(bias_.size());
  for (int64_t n = 0; n < pool.batch; ++n) {
    for (int64_t k = 0; k < pool.channels; ++k) {
      for (int64_t h = 0; h < pool.height; ++h) {
        for (int64_t w = 0; w < pool.width; ++w) {
          const size_t at = static_cast<size_t>(z_at(n, k, h, w));
          const double g = dy[at] * derivative(y[at]);
          dbias[static_cast<size_t>(k)] += g;
          each_product(n, k, h, w, [&](size_t x, size_t tap) {
            dx[x] += g * w_[tap];
            dw[tap] += g * x_[x];
          });
        }
      }
    }
  }
  for (int threads : {1, 2, 5}) {
    std::vector<float> our_dx(x_.size(), -99.0f), our_dw(w_.size(), -99.0f),
        our_dbias(bias_.size(), -99.0f);
    const ConvBackwardTensors tensors = {
        dy.data(),     y.data(),      nullptr,          x_.data(), w_.data(), bias_.data(),
        our_dx.data(), our_dw.data(), our_dbias.data(), nullptr,   nullptr};
    CHECK(algorithm_.backward(p_, tensors, threads));
    const auto differing = [](const std::vector<float>& ours, const std::vector<double>& theirs) {
      size_t count = 0;
      for (size_t i = 0; i < ours.size(); ++i) {
        if (!(static_cast<double>(ours[i]) == theirs[i])) ++count;
      }
      return count;
    };
    CHECK_THAT(differing(our_dx, dx) == 0, "dx: %zu of %zu, %d threads", differing(our_dx, dx),
               dx.size(), threads);
    CHECK_THAT(differing(our_dw, dw) == 0, "dw: %zu of %zu, %d threads", differing(our_dw, dw),
               dw.size(), threads);
    CHECK_THAT(differing(our_dbias, dbias) == 0, "dbias: %zu of %zu, %d threads",
               differing(our_dbias, dbias), dbias.size(), threads);
  }
}

}  // namespace test
}  // namespace cmf

// Transposed convolutions against a naive one: with weights made ready before and anew. Every array
// is of its exact size, so that the address sanitizer sees what a kernel touches beside it.
#include <math.h>

#include <vector>

#if !defined(CMF_ISA)
#define CMF_ISA baseline
#endif
#include "common/activation.h"
#include "cpu/kernel_table.h"
#include "tests/check.h"

namespace cmf {
namespace test {

void test_conv_transposed(const KernelTable& kernels);

namespace {

struct Shape {
  ConvAlgorithm algorithm;
  int64_t batch, channels, height, width;  // of the input
  int64_t filters, kernel_height, kernel_width, stride_height, stride_width, pad;
};

class Case {
 public:
  Case(const KernelTable& kernels, const Shape& s, bool channels_last, int32_t activation)
      : conv_(kernels.conv_act_pool2d[static_cast<int>(s.algorithm)]), p_(), output_() {
    p_.in_channels = p_.image_channels = s.filters;
    p_.height = (s.height - 1) * s.stride_height + s.kernel_height - 2 * s.pad;
    p_.width = (s.width - 1) * s.stride_width + s.kernel_width - 2 * s.pad;
    p_.kernel_height = s.kernel_height, p_.kernel_width = s.kernel_width;
    p_.stride_height = s.stride_height, p_.stride_width = s.stride_width;
    p_.pad_height = p_.pad_width = s.pad;
    p_.dilation_height = p_.dilation_width = p_.groups = 1;
    p_.x_channels_last = channels_last;
    p_.pool = plane(s.batch, s.channels, s.height, s.width, channels_last, 0);
    check_conv_act_pool2d_problem(p_);
    output_ = plane(s.batch, s.filters, p_.height, p_.width, channels_last, activation);
    uint64_t state = 5;
    x_ = quarters(s.batch * s.channels * s.height * s.width, &state);
    w_ = quarters(s.channels * s.filters * s.kernel_height * s.kernel_width, &state);
    bias_ = quarters(s.filters, &state);
    set_context("x [%d,%d,%d,%d] %d filters %dx%d %s", int(s.batch), int(s.channels), int(s.height),
                int(s.width), int(s.filters), int(s.kernel_height), int(s.kernel_width),
                channels_last ? "NHWC" : "NCHW");
  }

  void run() const {
    const char* refusal =
        conv_.transposed_refusal ? conv_.transposed_refusal(p_) : conv_.refusal(p_, true);
    CHECK_THAT(refusal == nullptr, "refused: %s", refusal);
    const std::vector<double> expected = naive();
    const std::vector<float> fresh = transposed(nullptr, 1);
    double scale = 1, worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double error = fabs(static_cast<double>(fresh[i]) - expected[i]);
      if (!(error <= worst)) worst = error;  // NaN too
      if (fabs(expected[i]) > scale) scale = fabs(expected[i]);
    }
    CHECK_THAT(worst <= 1e-5 * scale, "%.3g off, of %.3g", worst, scale);
    std::vector<float> prepared(static_cast<size_t>(conv_.transposed_size(p_)));
    for (int threads : {1, 2, 5}) {
      CHECK(conv_.prepare_transposed(p_, w_.data(), prepared.data(), threads));
      CHECK_THAT(transposed(prepared.data(), threads) == fresh, "differs with %d threads", threads);
      CHECK_THAT(transposed(nullptr, threads) == fresh, "differs with %d threads", threads);
    }
  }

 private:
  static ActPool2dProblem plane(int64_t batch, int64_t channels, int64_t height, int64_t width,
                                bool channels_last, int32_t activation) {
    ActPool2dProblem p = {};
    p.batch = batch, p.channels = channels;
    p.height = p.out_height = height, p.width = p.out_width = width;
    p.pool_height = p.pool_width = p.pool_stride_height = p.pool_stride_width = 1;
    p.activation = activation, p.activation_param = 0.25;
    p.pool = Pool::kNone, p.channels_last = channels_last;
    complete_act_pool2d_problem(&p);
    return p;
  }

  static std::vector<float> quarters(int64_t count, uint64_t* state) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
      value = static_cast<float>(static_cast<int>(next_random(state) % 16) - 8) / 4.0f;
    }
    return values;
  }

  std::vector<float> transposed(const float* prepared, int threads) const {
    std::vector<float> y(static_cast<size_t>(p_.pool.batch * p_.in_channels * p_.height * p_.width),
                         -99.0f);
    const ConvTransposed what = {prepared, bias_.data(), &output_, 0};
    ConvBackwardTensors t = {};
    t.dy = x_.data(), t.w = w_.data(), t.dx = y.data(), t.transposed = &what;
    CHECK(conv_.transposed(p_, t, threads));
    return y;
  }

  static int64_t at(const ActPool2dProblem& p, int64_t n, int64_t k, int64_t h, int64_t w) {
    return p.channels_last ? ((n * p.height + h) * p.width + w) * p.channels + k
                           : ((n * p.channels + k) * p.height + h) * p.width + w;
  }

  std::vector<double> naive() const {
    std::vector<double> y(
        static_cast<size_t>(p_.pool.batch * p_.in_channels * p_.height * p_.width));
    const int64_t area = p_.kernel_height * p_.kernel_width;
    for (int64_t n = 0; n < p_.pool.batch; ++n) {
      for (int64_t k = 0; k < p_.in_channels; ++k) {
        for (int64_t i = 0; i < p_.pool.height * p_.pool.width * area; ++i) {
          const int64_t h = i / area / p_.pool.width, w = i / area % p_.pool.width;
          const int64_t r = i % area / p_.kernel_width, s = i % p_.kernel_width;
          const int64_t row = h * p_.stride_height + r - p_.pad_height;
          const int64_t column = w * p_.stride_width + s - p_.pad_width;
          if (row < 0 || row >= p_.height || column < 0 || column >= p_.width) continue;
          double& sum = y[static_cast<size_t>(at(output_, n, k, row, column))];
          for (int64_t c = 0; c < p_.pool.channels; ++c) {
            const int64_t tap = (c * p_.in_channels + k) * area + r * p_.kernel_width + s;
            sum += static_cast<double>(x_[static_cast<size_t>(at(p_.pool, n, c, h, w))]) *
                   static_cast<double>(w_[static_cast<size_t>(tap)]);
          }
        }
        for (int64_t i = 0; i < p_.height * p_.width; ++i) {
          double& sum = y[static_cast<size_t>(at(output_, n, k, i / p_.width, i % p_.width))];
          sum += static_cast<double>(bias_[static_cast<size_t>(k)]);
          if (output_.activation != 0 && sum < 0) sum *= output_.activation_param;
        }
      }
    }
    return y;
  }

  const ConvKernels& conv_;
  ConvActPool2dProblem p_;
  ActPool2dProblem output_;
  std::vector<float> x_, w_, bias_;
};

}  // namespace

void test_conv_transposed(const KernelTable& kernels) {
  using baseline::Activation;
  static_assert(int32_t(Activation::kIdentity) == 0, "0 is no activation");
  const ConvAlgorithm patches = ConvAlgorithm::kPatches, few = ConvAlgorithm::kFewChannels;
  const Shape shapes[] = {
      {patches, 2, 19, 5, 7, 37, 2, 2, 2, 2, 0},
      {patches, 1, 40, 3, 130, 16, 2, 2, 2, 2, 0},
      {patches, 2, 5, 4, 9, 33, 3, 1, 3, 1, 0},
      {patches, 2, 17, 6, 1, 9, 3, 3, 3, 3, 0},
      {patches, 3, 33, 1, 1, 21, 4, 4, 1, 1, 0},
      {patches, 2, 20, 1, 18, 5, 5, 2, 1, 2, 0},
      {few, 2, 20, 5, 6, 3, 4, 4, 2, 2, 1},
      {ConvAlgorithm::kWinograd, 2, 18, 5, 4, 20, 4, 4, 2, 2, 1},
      {ConvAlgorithm::kWinograd, 1, 33, 6, 7, 17, 3, 3, 1, 1, 1},
  };
  for (const Shape& shape : shapes) {
    for (bool channels_last : {false, true}) {
      for (Activation act : {Activation::kIdentity, Activation::kLeakyRelu}) {
        Case(kernels, shape, channels_last, int32_t(act)).run();
      }
    }
  }
}

}  // namespace test
}  // namespace cmf

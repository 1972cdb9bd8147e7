// Winograd's forward of every instruction set against plain loops in double, with its weights
// prepared and made anew, with a residual, and the same bits with any number of threads. Some
// problems have few tiles that share many weights: their threads share the transformed tiles too.
#include <math.h>

#include <vector>

#if !defined(CMF_ISA)
#define CMF_ISA baseline
#endif
#include "common/conv_act_pool2d_kernels.h"
#include "cpu/kernel_table.h"
#include "tests/act_pool2d_reference.h"
#include "tests/check.h"
#include "tests/conv_case.h"

namespace cmf {
namespace test {

void test_winograd(const KernelTable& kernels);

namespace {

class Case {
 public:
  Case(const KernelTable& kernels, const ConvShape& s, bool pooled, bool channels_last)
      : conv_(kernels.conv_act_pool2d[static_cast<int>(ConvAlgorithm::kWinograd)]),
        p_(conv_problem(s,
                        {static_cast<int32_t>(Activation::kRelu), 0,
                         pooled ? Pool::kMax : Pool::kNone, pooled ? 2 : 1, pooled ? 2 : 1},
                        channels_last, channels_last)) {
    set_context("%s [%d,%d,%d,%d] * [%d,%d] stride %d pad %d pool %d %s", kernels.isa, int(s.batch),
                int(s.channels), int(s.height), int(s.width), int(s.filters), int(s.kernel_height),
                int(s.stride), int(s.pad), int(pooled), channels_last ? "NHWC" : "NCHW");
    uint64_t state = 11;
    const auto fill = [&](int64_t count) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float& value : values) value = random_between(&state, -1, 1);
      return values;
    };
    x_ = fill(s.batch * s.channels * s.height * s.width);
    w_ = fill(s.filters * (s.channels / s.groups) * s.kernel_height * s.kernel_width);
    bias_ = fill(s.filters);
    const ActPool2dProblem& q = p_.pool;
    residual_ = fill(pooled ? 0 : q.batch * q.channels * q.height * q.width);
  }

  void check() {
    check_anyhow();
    if (residual_.empty()) return;
    residual_.clear();
    check_anyhow();
  }

 private:
  void check_anyhow() const {
    CHECK(conv_.refusal(p_, false) == nullptr);
    const bool anew = conv_.transforms_weights && conv_.transforms_weights(p_, 2);
    for (const bool prepared : {true, false}) {
      if (!prepared && !anew) continue;
      const std::vector<float> y = forward(1, prepared);
      compare(y);
      for (const int threads : {2, 5}) {
        CHECK_THAT(forward(threads, prepared) == y, "y differs with %d threads", threads);
      }
    }
  }

  std::vector<float> forward(int threads, bool prepared) const {
    const ActPool2dProblem& q = p_.pool;
    std::vector<float> y(static_cast<size_t>(q.batch * q.channels * q.out_height * q.out_width));
    std::vector<float> weights(prepared ? static_cast<size_t>(conv_.prepared_size(p_)) : 0);
    if (prepared) CHECK(conv_.prepare(p_, w_.data(), weights.data(), threads));
    ConvForwardTensors t = {};
    t.x = x_.data(), t.w = w_.data(), t.bias = bias_.data(), t.y = y.data();
    t.prepared = prepared ? weights.data() : nullptr;
    t.residual = residual_.empty() ? nullptr : residual_.data();
    CHECK(conv_.forward(p_, t, threads));
    return y;
  }

  double z(int64_t n, int64_t k, int64_t h, int64_t w) const {
    double sum = bias_[size_t(k)];
    if (!residual_.empty()) {
      const ActPool2dProblem& q = p_.pool;
      const int64_t pixel = (n * q.height + h) * q.width + w;
      const int64_t plane = (n * q.channels + k) * q.height * q.width;
      sum += residual_[size_t(q.channels_last ? pixel * q.channels + k : plane + h * q.width + w)];
    }
    const int64_t channels = p_.in_channels / p_.groups;
    const int64_t first = k / (p_.pool.channels / p_.groups) * channels;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t r = 0; r < p_.kernel_height; ++r) {
        for (int64_t s = 0; s < p_.kernel_width; ++s) {
          const int64_t i = h * p_.stride_height + r - p_.pad_height;
          const int64_t j = w * p_.stride_width + s - p_.pad_width;
          if (i < 0 || i >= p_.height || j < 0 || j >= p_.width) continue;
          const int64_t at =
              p_.x_channels_last
                  ? ((n * p_.height + i) * p_.width + j) * p_.in_channels + first + c
                  : ((n * p_.in_channels + first + c) * p_.height + i) * p_.width + j;
          const int64_t tap = ((k * channels + c) * p_.kernel_height + r) * p_.kernel_width + s;
          sum += double(x_[size_t(at)]) * double(w_[size_t(tap)]);
        }
      }
    }
    return sum;
  }

  // Relative to the largest: a transform rounds relative to what it transforms.
  void compare(const std::vector<float>& y) const {
    const ActPool2dProblem& q = p_.pool;
    double scale = 1e-3, worst = 0;
    for (int64_t n = 0; n < q.batch; ++n) {
      for (int64_t k = 0; k < q.channels; ++k) {
        for (int64_t i = 0; i < q.out_height * q.out_width; ++i) {
          const int64_t row = i / q.out_width, column = i % q.out_width;
          double want = 0;
          for (int64_t e = 0; e < q.pool_height * q.pool_width; ++e) {
            want = fmax(want, z(n, k, row * q.pool_height + e / q.pool_width,
                                column * q.pool_width + e % q.pool_width));
          }
          const int64_t plane = q.out_height * q.out_width;
          const int64_t at =
              q.channels_last ? (n * plane + i) * q.channels + k : (n * q.channels + k) * plane + i;
          const double error = fabs(y[size_t(at)] - want);
          if (!(error <= worst)) worst = error;  // NaN too
          if (want > scale) scale = want;
        }
      }
    }
    CHECK_THAT(worst <= 1e-5 * scale, "y is %.3g off, of %.3g", worst, scale);
  }

  const ConvKernels& conv_;
  ConvActPool2dProblem p_;
  std::vector<float> x_, w_, bias_;
  std::vector<float> residual_;  // empty: none
};

}  // namespace

void test_winograd(const KernelTable& kernels) {
  const ConvShape shapes[] = {
      {1, 17, 33, 35, 21, 3, 3, 1, 1},
      {2, 3, 14, 18, 40, 5, 5, 1, 2},
      {1, 6, 17, 30, 9, 4, 4, 2, 1},
      // a megabyte of transformed weights
      {1, 64, 8, 8, 128, 3, 3, 1, 1},
      {2, 40, 12, 13, 200, 3, 3, 1, 1},
      {1, 32, 16, 16, 100, 4, 4, 2, 1},
      // groups of whole blocks in every instruction set
      {2, 48, 13, 18, 96, 3, 3, 1, 1, 1, 3},
      {1, 64, 14, 16, 64, 4, 4, 2, 1, 1, 2},
      {3, 51, 9, 11, 57, 3, 3, 1, 1, 1, 3},
      {1, 34, 13, 12, 50, 3, 3, 2, 1, 1, 2},
      // filters in parts
      {1, 18, 13, 15, 21, 7, 7, 1, 3},
      {2, 5, 9, 20, 8, 9, 6, 1, 2},
      {1, 4, 3, 2, 3, 7, 7, 1, 6},
  };
  for (const ConvShape& s : shapes) {
    for (const bool channels_last : {false, true}) {
      for (const bool pooled : {false, true}) Case(kernels, s, pooled, channels_last).check();
    }
  }
}

}  // namespace test
}  // namespace cmf

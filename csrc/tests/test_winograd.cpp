// Winograd's forward of every instruction set against plain loops in double, with its weights
// prepared and made anew, and the same bits with any number of threads. Some problems have few
// tiles that share many weights: their threads share the transformed tiles too.
#include <math.h>

#include <vector>

#if !defined(CMF_ISA)
#define CMF_ISA baseline
#endif
#include "common/conv_act_pool2d_kernels.h"
#include "cpu/kernel_table.h"
#include "tests/act_pool2d_reference.h"
#include "tests/check.h"

namespace cmf {
namespace test {

void test_winograd(const KernelTable& kernels);

namespace {

struct Shape {
  int64_t n, c, h, w, k, taps, stride, pad;
};

class Case {
 public:
  Case(const KernelTable& kernels, const Shape& s, bool pooled, bool channels_last)
      : conv_(kernels.conv_act_pool2d[static_cast<int>(ConvAlgorithm::kWinograd)]) {
    p_ = ConvActPool2dProblem{};
    p_.in_channels = s.c, p_.height = s.h, p_.width = s.w;
    p_.kernel_height = p_.kernel_width = s.taps;
    p_.stride_height = p_.stride_width = s.stride;
    p_.pad_height = p_.pad_width = s.pad;
    p_.dilation_height = p_.dilation_width = p_.groups = 1;
    p_.x_channels_last = channels_last;
    ActPool2dProblem& q = p_.pool;
    q.batch = s.n, q.channels = s.k;
    q.height = (s.h + 2 * s.pad - s.taps) / s.stride + 1;
    q.width = (s.w + 2 * s.pad - s.taps) / s.stride + 1;
    q.pool = pooled ? Pool::kMax : Pool::kNone;
    q.pool_height = q.pool_width = q.pool_stride_height = q.pool_stride_width = pooled ? 2 : 1;
    q.out_height = q.height / q.pool_height, q.out_width = q.width / q.pool_width;
    q.activation = static_cast<int32_t>(Activation::kRelu);
    q.count_include_pad = true;
    q.channels_last = channels_last;
    complete_act_pool2d_problem(&q);
    check_conv_act_pool2d_problem(p_);
    set_context("%s [%d,%d,%d,%d] * [%d,%d] stride %d pad %d pool %d %s", kernels.isa, int(s.n),
                int(s.c), int(s.h), int(s.w), int(s.k), int(s.taps), int(s.stride), int(s.pad),
                int(pooled), channels_last ? "NHWC" : "NCHW");
    uint64_t state = 11;
    const auto fill = [&](int64_t count) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float& value : values) value = random_between(&state, -1, 1);
      return values;
    };
    x_ = fill(s.n * s.c * s.h * s.w);
    w_ = fill(s.k * s.c * s.taps * s.taps);
    bias_ = fill(s.k);
  }

  void check() const {
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

 private:
  std::vector<float> forward(int threads, bool prepared) const {
    const ActPool2dProblem& q = p_.pool;
    std::vector<float> y(static_cast<size_t>(q.batch * q.channels * q.out_height * q.out_width));
    std::vector<float> weights(prepared ? static_cast<size_t>(conv_.prepared_size(p_)) : 0);
    if (prepared) CHECK(conv_.prepare(p_, w_.data(), weights.data(), threads));
    ConvForwardTensors t = {};
    t.x = x_.data(), t.w = w_.data(), t.bias = bias_.data(), t.y = y.data();
    t.prepared = prepared ? weights.data() : nullptr;
    CHECK(conv_.forward(p_, t, threads));
    return y;
  }

  double z(int64_t n, int64_t k, int64_t h, int64_t w) const {
    double sum = bias_[size_t(k)];
    for (int64_t c = 0; c < p_.in_channels; ++c) {
      for (int64_t r = 0; r < p_.kernel_height; ++r) {
        for (int64_t s = 0; s < p_.kernel_width; ++s) {
          const int64_t i = h * p_.stride_height + r - p_.pad_height;
          const int64_t j = w * p_.stride_width + s - p_.pad_width;
          if (i < 0 || i >= p_.height || j < 0 || j >= p_.width) continue;
          const int64_t at = p_.x_channels_last
                                 ? ((n * p_.height + i) * p_.width + j) * p_.in_channels + c
                                 : ((n * p_.in_channels + c) * p_.height + i) * p_.width + j;
          const int64_t tap =
              ((k * p_.in_channels + c) * p_.kernel_height + r) * p_.kernel_width + s;
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
};

}  // namespace

void test_winograd(const KernelTable& kernels) {
  const Shape shapes[] = {
      {1, 17, 33, 35, 21, 3, 1, 1},
      {2, 3, 14, 18, 40, 5, 1, 2},
      {1, 6, 17, 30, 9, 4, 2, 1},
      // a megabyte of transformed weights
      {1, 64, 8, 8, 128, 3, 1, 1},
      {2, 40, 12, 13, 200, 3, 1, 1},
      {1, 32, 16, 16, 100, 4, 2, 1},
  };
  for (const Shape& s : shapes) {
    for (const bool channels_last : {false, true}) {
      for (const bool pooled : {false, true}) Case(kernels, s, pooled, channels_last).check();
    }
  }
}

}  // namespace test
}  // namespace cmf

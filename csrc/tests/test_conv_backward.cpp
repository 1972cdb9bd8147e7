// The gradients of the fused convolutions of every instruction set against plain loops in double.
//
// dz comes from act_pool2d's own backward, which has a test of its own.
#include <math.h>
#include <string.h>

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

void test_conv_backward(const KernelTable& kernels);

namespace {

class Case {
 public:
  Case(const KernelTable& kernels, ConvAlgorithm algorithm, const ConvShape& s, Pool pool,
       int64_t size, int64_t step, Activation activation, bool channels_last)
      : kernels_(kernels),
        conv_(kernels.conv_act_pool2d[static_cast<int>(algorithm)]),
        p_(conv_problem(s, {static_cast<int32_t>(activation), 0.125, pool, size, step},
                        channels_last, channels_last)) {
    const ActPool2dProblem& q = p_.pool;
    set_context("%s [%d,%d,%d,%d] * [%d,%d,%d] stride %d pad %d pool %d %dx%d act %d %s",
                kernels.isa, int(s.batch), int(s.channels), int(s.height), int(s.width),
                int(s.filters), int(s.kernel_height), int(s.kernel_width), int(s.stride),
                int(s.pad), int(pool), int(size), int(size), int(activation),
                channels_last ? "NHWC" : "NCHW");
    uint64_t state = 11;
    const auto fill = [&](int64_t count) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float& value : values) value = random_between(&state, -1, 1);
      return values;
    };
    const int64_t y_count = q.batch * q.channels * q.out_height * q.out_width;
    const int64_t z_count = q.batch * q.channels * q.height * q.width;
    x_ = fill(x_count()), w_ = fill(w_count()), dy_ = fill(y_count);
    const std::vector<float> z = fill(z_count);
    y_.resize(static_cast<size_t>(y_count)), dz_.resize(static_cast<size_t>(z_count));
    index_.resize(static_cast<size_t>(y_count));
    CHECK(kernels.act_pool2d_forward(q, z.data(), nullptr, y_.data(),
                                     q.index_itemsize ? index_.data() : nullptr, nullptr, 1));
    CHECK(kernels.act_pool2d_backward(q, dy_.data(), y_.data(), nullptr, index_.data(), dz_.data(),
                                      nullptr, 1));
  }

  void check() {
    CHECK(!conv_.refusal(p_, true));
    std::vector<double> dx(x_.size()), dw(w_.size()), dbias(static_cast<size_t>(p_.pool.channels));
    expect(&dx, &dw, &dbias);
    Array ours_dx(x_count(), 4), ours_dw(w_count(), 4), ours_dbias(p_.pool.channels, 4);
    CHECK(run(1, &ours_dx, &ours_dw, &ours_dbias));
    compare("dx", ours_dx, dx);
    compare("dw", ours_dw, dw);
    compare("dbias", ours_dbias, dbias);
    for (int threads : {2, 5}) {
      Array other_dx(x_count(), 4), other_dw(w_count(), 4), other_dbias(p_.pool.channels, 4);
      CHECK(run(threads, &other_dx, &other_dw, &other_dbias));
      CHECK_THAT(other_dx.equals(ours_dx), "dx differs with %d threads", threads);
      CHECK_THAT(other_dw.equals(ours_dw), "dw differs with %d threads", threads);
      CHECK_THAT(other_dbias.equals(ours_dbias), "dbias differs with %d threads", threads);
    }
  }

 private:
  int64_t x_count() const { return p_.pool.batch * p_.in_channels * p_.height * p_.width; }
  int64_t group() const { return p_.in_channels / p_.groups; }  // channels of one
  int64_t w_count() const {
    return p_.pool.channels * group() * p_.kernel_height * p_.kernel_width;
  }

  bool run(int threads, Array* dx, Array* dw, Array* dbias) {
    ConvBackwardTensors t = {};
    t.dy = dy_.data(), t.x = x_.data(), t.w = w_.data();
    t.saved = p_.pool.saved == Saved::kOutput ? y_.data() : nullptr;
    t.index = p_.pool.index_itemsize ? index_.data() : nullptr;
    t.dx = dx->data(), t.dw = dw->data(), t.dbias = dbias->data();
    bool spoilt = true;
    t.dw_spoilt = &spoilt;
    const bool success = conv_.backward(p_, t, threads);
    CHECK(!spoilt);
    CHECK_THAT(dx->margins_are_whole() && dw->margins_are_whole() && dbias->margins_are_whole(),
               "gradients overrun");
    return success;
  }

  void expect(std::vector<double>* dx, std::vector<double>* dw, std::vector<double>* dbias) const {
    const ActPool2dProblem& q = p_.pool;
    for (int64_t n = 0; n < q.batch; ++n) {
      for (int64_t k = 0; k < q.channels; ++k) {
        for (int64_t i = 0; i < q.height * q.width; ++i) {
          const double g = double(
              dz_[size_t(at(n, k, i / q.width, i % q.width, q.channels, q.height, q.width))]);
          (*dbias)[size_t(k)] += g;
          if (g == 0) continue;
          for (int64_t j = 0; j < group() * p_.kernel_height * p_.kernel_width; ++j) {
            const int64_t c =
                k / (q.channels / p_.groups) * group() + j / (p_.kernel_height * p_.kernel_width);
            const int64_t r = j / p_.kernel_width % p_.kernel_height;
            const int64_t s = j % p_.kernel_width;
            const int64_t h = i / q.width * p_.stride_height + r - p_.pad_height;
            const int64_t v = i % q.width * p_.stride_width + s - p_.pad_width;
            if (h < 0 || h >= p_.height || v < 0 || v >= p_.width) continue;
            const int64_t x = at(n, c, h, v, p_.in_channels, p_.height, p_.width);
            const int64_t w = k * group() * p_.kernel_height * p_.kernel_width + j;
            (*dx)[size_t(x)] += g * double(w_[size_t(w)]);
            (*dw)[size_t(w)] += g * double(x_[size_t(x)]);
          }
        }
      }
    }
  }

  int64_t at(int64_t n, int64_t c, int64_t h, int64_t w, int64_t channels, int64_t height,
             int64_t width) const {
    return p_.x_channels_last ? ((n * height + h) * width + w) * channels + c
                              : ((n * channels + c) * height + h) * width + w;
  }

  // Relative to the largest: a transform rounds relative to what it transforms.
  void compare(const char* name, const Array& ours, const std::vector<double>& expected) const {
    double scale = 1e-3, worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double error = fabs(ours.get(DType::kFloat32, int64_t(i)) - expected[i]);
      if (!(error <= worst)) worst = error;  // NaN too
      if (fabs(expected[i]) > scale) scale = fabs(expected[i]);
    }
    CHECK_THAT(worst <= 1e-5 * scale, "%s is %.3g off, of %.3g", name, worst, scale);
  }

  const KernelTable& kernels_;
  const ConvKernels& conv_;
  ConvActPool2dProblem p_;
  std::vector<float> x_, w_, dy_, y_, dz_;
  std::vector<uint8_t> index_;
};

}  // namespace

void test_conv_backward(const KernelTable& kernels) {
  const ConvShape winograd[] = {
      {2, 17, 9, 11, 21, 3, 3, 1, 1},       {1, 3, 6, 13, 35, 3, 3, 1, 0},
      {2, 5, 12, 10, 8, 4, 4, 2, 1},        {1, 6, 11, 9, 9, 3, 3, 2, 1},
      {2, 4, 8, 9, 6, 5, 5, 1, 2},          {1, 3, 17, 15, 4, 7, 7, 2, 3},
      {1, 2, 5, 4, 3, 3, 2, 1, 1},          {2, 51, 9, 8, 57, 3, 3, 1, 1, 1, 3},
      {1, 34, 11, 9, 40, 3, 3, 2, 1, 1, 2}, {1, 18, 13, 10, 21, 7, 7, 1, 3},
      {2, 5, 9, 12, 8, 9, 6, 1, 2},         {1, 4, 3, 2, 3, 7, 7, 1, 6},
  };
  const ConvShape pointwise[] = {
      {2, 17, 9, 11, 21, 1, 1, 1, 0}, {1, 3, 6, 13, 35, 1, 1, 1, 0},
      {3, 40, 5, 4, 8, 1, 1, 1, 0},   {1, 6, 11, 9, 66, 1, 1, 2, 0},
      {5, 33, 3, 3, 1, 1, 1, 1, 0},   {2, 16, 12, 12, 16, 1, 1, 3, 0},
      {1, 5, 40, 33, 19, 1, 1, 1, 0}, {2, 51, 9, 8, 57, 1, 1, 1, 0, 1, 3},
  };
  const ConvShape patches[] = {
      {2, 17, 9, 11, 21, 2, 2, 2, 0},
      {1, 3, 6, 13, 35, 3, 3, 1, 2},
      {2, 40, 7, 7, 8, 3, 3, 2, 1},
      {1, 6, 11, 9, 66, 1, 7, 1, 3},
      {5, 33, 9, 9, 1, 5, 5, 1, 2},
      {2, 16, 12, 12, 16, 2, 3, 4, 1},
      {1, 5, 16, 16, 19, 8, 8, 8, 0},
      // enough of everything for several threads
      {1, 96, 12, 13, 80, 3, 3, 1, 1},
      {1, 96, 12, 13, 80, 3, 3, 2, 1},
  };
  const auto check_all = [&](ConvAlgorithm algorithm, const ConvShape& s) {
    for (const bool channels_last : {false, true}) {
      const auto check = [&](Pool pool, int64_t size, int64_t step, Activation activation) {
        Case(kernels, algorithm, s, pool, size, step, activation, channels_last).check();
      };
      check(Pool::kMax, 2, 2, Activation::kRelu);
      check(Pool::kMax, 3, 2, Activation::kTanh);
      check(Pool::kAvg, 2, 2, Activation::kLeakyRelu);
      check(Pool::kNone, 1, 1, Activation::kRelu);
    }
  };
  for (const ConvShape& s : winograd) check_all(ConvAlgorithm::kWinograd, s);
  for (const ConvShape& s : pointwise) check_all(ConvAlgorithm::kPointwise, s);
  for (const ConvShape& s : patches) {
    Case(kernels, ConvAlgorithm::kPatches, s, Pool::kNone, 1, 1, Activation::kIdentity, true)
        .check();
  }
}

}  // namespace test
}  // namespace cmf

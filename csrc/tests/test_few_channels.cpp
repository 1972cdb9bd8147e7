// The direct convolution for few input channels, of every instruction set, against plain loops in
// double.
//
// Inputs and weights are multiples of 1/8 whose sums are exact in float32: ties are frequent, and
// the chosen positions can be compared one by one.
#include <math.h>

#include <vector>

#if !defined(CMF_ISA)
#define CMF_ISA baseline
#endif
#include "common/conv_act_pool2d_problem.h"
#include "cpu/kernel_table.h"
#include "tests/act_pool2d_reference.h"
#include "tests/check.h"

namespace cmf {
namespace test {

void test_few_channels(const KernelTable& kernels);

namespace {

struct Shape {
  int64_t n, c, h, w, k, r, s, stride, pad;
  Pool pool;
  int64_t size, pool_stride, pool_pad;
};

class Case {
 public:
  Case(const KernelTable& table, const Shape& s, Activation activation, double param, bool x_last,
       bool y_last)
      : kernels_(table.conv_act_pool2d[static_cast<int>(ConvAlgorithm::kFewChannels)]),
        activation_(activation),
        param_(param) {
    p_ = ConvActPool2dProblem{};
    p_.in_channels = p_.image_channels = s.c, p_.height = s.h, p_.width = s.w;
    p_.kernel_height = s.r, p_.kernel_width = s.s;
    p_.stride_height = p_.stride_width = s.stride;
    p_.pad_height = p_.pad_width = s.pad;
    p_.dilation_height = p_.dilation_width = p_.groups = 1;
    p_.x_channels_last = x_last;
    ActPool2dProblem& o = p_.pool;
    o.batch = s.n, o.channels = s.k;
    o.height = (s.h + 2 * s.pad - s.r) / s.stride + 1;
    o.width = (s.w + 2 * s.pad - s.s) / s.stride + 1;
    o.pool = s.pool;
    o.pool_height = o.pool_width = s.size;
    o.pool_stride_height = o.pool_stride_width = s.pool_stride;
    o.pool_pad_height = o.pool_pad_width = s.pool_pad;
    o.out_height = (o.height + 2 * s.pool_pad - s.size) / s.pool_stride + 1;
    o.out_width = (o.width + 2 * s.pool_pad - s.size) / s.pool_stride + 1;
    o.activation = static_cast<int32_t>(activation);
    o.activation_param = param;
    o.dtype = static_cast<int32_t>(DType::kFloat32);
    o.count_include_pad = true;
    o.channels_last = y_last;
    complete_act_pool2d_problem(&o);
    check_conv_act_pool2d_problem(p_);
    set_context("%s [%d,%d,%d,%d] %d %dx%d/%d+%d pool %d %d/%d+%d act %d x %s y %s", table.isa,
                int(s.n), int(s.c), int(s.h), int(s.w), int(s.k), int(s.r), int(s.s), int(s.stride),
                int(s.pad), int(s.pool), int(s.size), int(s.pool_stride), int(s.pool_pad),
                int(activation), x_last ? "NHWC" : "NCHW", y_last ? "NHWC" : "NCHW");
    uint64_t state = 11;
    const auto eighths = [&](std::vector<float>* values, int64_t count, int range) {
      values->resize(static_cast<size_t>(count));
      for (float& v : *values) v = float(int(next_random(&state) % (2 * range + 1)) - range) / 8;
    };
    eighths(&x_, s.n * s.c * s.h * s.w, 8);
    eighths(&w_, s.k * s.c * s.r * s.s, 4);
    eighths(&bias_, s.k, 8);
    eighths(&dy_, y_count(), 8);
    convolve();
  }

  void check() {
    CHECK(kernels_.refusal(p_, false) == nullptr);
    Array y(y_count(), 4), index(y_count(), 1), alone(y_count(), 4);
    run_forward(1, &y, p_.pool.index_itemsize ? &index : nullptr);
    run_forward(1, &alone, nullptr);
    CHECK_THAT(y.equals(alone), "y differs without an index");
    check_values(y, index);
    for (int threads : {2, 5}) {
      Array other(y_count(), 4), other_index(y_count(), 1);
      run_forward(threads, &other, p_.pool.index_itemsize ? &other_index : nullptr);
      CHECK_THAT(other.equals(y), "y differs with %d threads", threads);
      CHECK_THAT(other_index.equals(index), "the index differs with %d threads", threads);
    }
    if (p_.pool.saved == Saved::kInput || p_.pool.saved == Saved::kPreactivation) return;
    CHECK(kernels_.refusal(p_, true) == nullptr);
    check_gradients(y, index);
  }

 private:
  int64_t y_count() const {
    return p_.pool.batch * p_.pool.channels * p_.pool.out_height * p_.pool.out_width;
  }
  int64_t y_at(int64_t n, int64_t k, int64_t p, int64_t q) const {
    const ActPool2dProblem& o = p_.pool;
    return o.channels_last ? ((n * o.out_height + p) * o.out_width + q) * o.channels + k
                           : ((n * o.channels + k) * o.out_height + p) * o.out_width + q;
  }
  double x_at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    if (h < 0 || h >= p_.height || w < 0 || w >= p_.width) return 0;
    return p_.x_channels_last
               ? x_[size_t(((n * p_.height + h) * p_.width + w) * p_.in_channels + c)]
               : x_[size_t(((n * p_.in_channels + c) * p_.height + h) * p_.width + w)];
  }
  double& z(int64_t n, int64_t k, int64_t h, int64_t w) {
    return z_[size_t(((n * p_.pool.channels + k) * p_.pool.height + h) * p_.pool.width + w)];
  }

  // body(c, r, s, i): the weights of a filter
  template <class Body>
  void for_each_tap(const Body& body) const {
    int64_t i = 0;
    for (int64_t c = 0; c < p_.in_channels; ++c) {
      for (int64_t r = 0; r < p_.kernel_height; ++r) {
        for (int64_t s = 0; s < p_.kernel_width; ++s, ++i) body(c, r, s, i);
      }
    }
  }
  int64_t taps() const { return p_.in_channels * p_.kernel_height * p_.kernel_width; }

  // body(n, k, h, w)
  template <class Body>
  void for_each(int64_t height, int64_t width, const Body& body) const {
    for (int64_t n = 0; n < p_.pool.batch; ++n) {
      for (int64_t k = 0; k < p_.pool.channels; ++k) {
        for (int64_t h = 0; h < height; ++h) {
          for (int64_t w = 0; w < width; ++w) body(n, k, h, w);
        }
      }
    }
  }

  void convolve() {
    const ActPool2dProblem& o = p_.pool;
    z_.resize(size_t(o.batch * o.channels * o.height * o.width));
    for_each(o.height, o.width, [&](int64_t n, int64_t k, int64_t h, int64_t w) {
      double sum = bias_[size_t(k)];
      for_each_tap([&](int64_t c, int64_t r, int64_t s, int64_t i) {
        sum += w_[size_t(k * taps() + i)] * x_at(n, c, h * p_.stride_height + r - p_.pad_height,
                                                 w * p_.stride_width + s - p_.pad_width);
      });
      z(n, k, h, w) = sum;
    });
  }

  void run_forward(int threads, Array* y, Array* index) {
    ConvForwardTensors t = {};
    t.x = x_.data(), t.w = w_.data(), t.bias = bias_.data(), t.y = y->data();
    t.index = index ? index->data() : nullptr;
    std::vector<float> preactivation;
    if (index && p_.pool.saved == Saved::kPreactivation) {
      preactivation.resize(size_t(y_count()));
      t.preactivation = preactivation.data();
    }
    CHECK(kernels_.forward(p_, t, threads));
    CHECK_THAT(y->margins_are_whole() && (!index || index->margins_are_whole()), "overrun");
  }

  // The window of output (p, q): body(h, w, position).
  template <class Body>
  void for_window(int64_t p, int64_t q, const Body& body) const {
    const ActPool2dProblem& o = p_.pool;
    for (int64_t r = 0; r < o.pool_height; ++r) {
      for (int64_t s = 0; s < o.pool_width; ++s) {
        const int64_t h = p * o.pool_stride_height - o.pool_pad_height + r;
        const int64_t w = q * o.pool_stride_width - o.pool_pad_width + s;
        if (h >= 0 && h < o.height && w >= 0 && w < o.width) body(h, w, r * o.pool_width + s);
      }
    }
  }

  void check_values(const Array& y, const Array& index) {
    const ActPool2dProblem& o = p_.pool;
    for_each(o.out_height, o.out_width, [&](int64_t n, int64_t k, int64_t p, int64_t q) {
      double best = -INFINITY, sum = 0;
      int64_t position = 0;
      for_window(p, q, [&](int64_t h, int64_t w, int64_t at) {
        const double value = activate(activation_, z(n, k, h, w), param_);
        sum += value;
        if (value > best) best = value, position = at;
      });
      const int64_t i = y_at(n, k, p, q);
      const double want = o.pool == Pool::kAvg ? sum / double(o.pool_height * o.pool_width) : best;
      CHECK_THAT(is_near(y.get(DType::kFloat32, i), want, 2e-6), "y[%d] is %.9g, not %.9g", int(i),
                 y.get(DType::kFloat32, i), want);
      // where the activation is flat, equal values may come from unequal ones: relu's zeros
      if (o.pool == Pool::kMax && activation_ == Activation::kIdentity) {
        CHECK_THAT(index.code(i) == position, "index[%d] is %d, not %d", int(i), int(index.code(i)),
                   int(position));
      }
    });
  }

  void check_gradients(const Array& y, const Array& index) {
    const ActPool2dProblem& o = p_.pool;
    std::vector<double> dz(z_.size(), 0.0);
    for_each(o.out_height, o.out_width, [&](int64_t n, int64_t k, int64_t p, int64_t q) {
      const int64_t i = y_at(n, k, p, q);
      for_window(p, q, [&](int64_t h, int64_t w, int64_t at) {
        double g = dy_[size_t(i)] * derivative(activation_, z(n, k, h, w), param_);
        if (o.pool == Pool::kAvg) g /= double(o.pool_height * o.pool_width);
        if (o.pool == Pool::kMax && index.code(i) != at) g = 0;
        dz[size_t(((n * o.channels + k) * o.height + h) * o.width + w)] += g;
      });
    });
    std::vector<double> dw(w_.size(), 0.0), dbias(bias_.size(), 0.0);
    double scale = 1;
    size_t at = 0;
    for_each(o.height, o.width, [&](int64_t n, int64_t k, int64_t h, int64_t w) {
      const double g = dz[at++];
      scale += fabs(g);
      dbias[size_t(k)] += g;
      for_each_tap([&](int64_t c, int64_t r, int64_t s, int64_t i) {
        dw[size_t(k * taps() + i)] += g * x_at(n, c, h * p_.stride_height + r - p_.pad_height,
                                               w * p_.stride_width + s - p_.pad_width);
      });
    });
    Array first_dw(int64_t(dw.size()), 4), first_dbias(int64_t(dbias.size()), 4);
    run_backward(1, y, index, &first_dw, &first_dbias);
    // a filter's share of the gradients bounds its sums; float32 loses few units in the last place
    const double bound = 1e-6 * scale / double(o.channels) * 4;
    for (size_t i = 0; i < dw.size(); ++i) {
      const double actual = first_dw.get(DType::kFloat32, int64_t(i));
      CHECK_THAT(fabs(actual - dw[i]) <= bound, "dw[%d] is %.9g, not %.9g", int(i), actual, dw[i]);
    }
    for (size_t i = 0; i < dbias.size(); ++i) {
      const double actual = first_dbias.get(DType::kFloat32, int64_t(i));
      CHECK_THAT(fabs(actual - dbias[i]) <= bound, "dbias[%d] is %.9g, not %.9g", int(i), actual,
                 dbias[i]);
    }
    for (int threads : {2, 5}) {
      Array other_dw(int64_t(dw.size()), 4), other_dbias(int64_t(dbias.size()), 4);
      run_backward(threads, y, index, &other_dw, &other_dbias);
      CHECK_THAT(other_dw.equals(first_dw), "dw differs with %d threads", threads);
      CHECK_THAT(other_dbias.equals(first_dbias), "dbias differs with %d threads", threads);
    }
  }

  void run_backward(int threads, const Array& y, const Array& index, Array* dw, Array* dbias) {
    ConvBackwardTensors t = {};
    t.dy = dy_.data(), t.x = x_.data(), t.w = w_.data(), t.bias = bias_.data();
    t.saved = p_.pool.saved == Saved::kOutput ? y.data() : nullptr;
    t.index = p_.pool.index_itemsize ? index.data() : nullptr;
    t.dw = dw->data(), t.dbias = dbias->data();
    CHECK(kernels_.backward(p_, t, threads));
    CHECK_THAT(dw->margins_are_whole() && dbias->margins_are_whole(), "gradients overrun");
  }

  const ConvKernels& kernels_;
  ConvActPool2dProblem p_;
  Activation activation_;
  double param_;
  std::vector<float> x_, w_, bias_, dy_;
  std::vector<double> z_;
};

}  // namespace

void test_few_channels(const KernelTable& kernels) {
  const Shape shapes[] = {
      {2, 1, 14, 28, 20, 3, 3, 1, 1, Pool::kMax, 2, 2, 0},
      {1, 3, 17, 31, 33, 3, 3, 1, 1, Pool::kMax, 2, 2, 0},
      {1, 2, 6, 71, 48, 3, 3, 1, 1, Pool::kMax, 2, 2, 0},
      {2, 3, 9, 11, 5, 4, 4, 2, 1, Pool::kNone, 1, 1, 0},
      {1, 2, 24, 30, 17, 5, 3, 2, 2, Pool::kMax, 3, 2, 1},
      {1, 4, 12, 13, 16, 3, 2, 1, 0, Pool::kAvg, 2, 2, 0},
      {1, 3, 30, 33, 18, 11, 11, 4, 2, Pool::kMax, 3, 2, 0},
      {1, 8, 4, 5, 40, 1, 1, 1, 0, Pool::kMax, 2, 1, 0},
      {1, 5, 8, 13, 3, 5, 5, 1, 2, Pool::kMax, 2, 2, 0},
  };
  for (const Shape& shape : shapes) {
    for (int formats = 0; formats < 4; ++formats) {
      const bool x_last = formats & 1, y_last = formats & 2;
      Case(kernels, shape, Activation::kIdentity, 0, x_last, y_last).check();
      Case(kernels, shape, Activation::kLeakyRelu, 0.25, x_last, y_last).check();
      Case(kernels, shape, Activation::kTanh, 0, x_last, y_last).check();
      Case(kernels, shape, Activation::kSilu, 0, x_last, y_last).check();
    }
  }
}

}  // namespace test
}  // namespace cmf

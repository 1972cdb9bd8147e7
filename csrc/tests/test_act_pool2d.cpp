// act_pool2d of every instruction set against plain loops in double.
//
// Inputs are multiples of 1/8, exact in every storage type, so ties are frequent, the kinks of the
// activations are hit, and the chosen positions can be compared one by one.
#include <math.h>

#include <vector>

// half types and the activations' names, from the instruction set that runs everywhere
#if !defined(CMF_ISA)
#define CMF_ISA baseline
#endif
#include "common/act_pool2d_problem.h"
#include "cpu/kernel_table.h"
#include "tests/act_pool2d_reference.h"
#include "tests/check.h"

namespace cmf {
namespace test {

void test_act_pool2d(const KernelTable& kernels);

namespace {

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Shape {
  int64_t n, k, h, w, size_h, size_w, stride_h, stride_w, pad_h, pad_w;
  bool ceil_mode;
};

// As torch.nn.functional's pooling.
int64_t out_size(int64_t length, int64_t size, int64_t stride, int64_t pad, bool ceil_mode) {
  int64_t out = (length + 2 * pad - size + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= length + pad) --out;
  return out;
}

class Case {
 public:
  Case(const KernelTable& kernels, const Shape& s, Pool pool, Activation activation, double param,
       DType dtype, bool channels_last, bool has_bias, bool special)
      : kernels_(kernels), activation_(activation), param_(param), dtype_(dtype) {
    p_ = ActPool2dProblem{};
    p_.batch = s.n, p_.channels = s.k, p_.height = s.h, p_.width = s.w;
    const bool pools = pool != Pool::kNone;
    p_.pool_height = pools ? s.size_h : 1, p_.pool_width = pools ? s.size_w : 1;
    p_.pool_stride_height = pools ? s.stride_h : 1, p_.pool_stride_width = pools ? s.stride_w : 1;
    p_.pool_pad_height = pools ? s.pad_h : 0, p_.pool_pad_width = pools ? s.pad_w : 0;
    p_.out_height = pools ? out_size(s.h, s.size_h, s.stride_h, s.pad_h, s.ceil_mode) : s.h;
    p_.out_width = pools ? out_size(s.w, s.size_w, s.stride_w, s.pad_w, s.ceil_mode) : s.w;
    p_.activation_param = param;
    p_.activation = static_cast<int32_t>(activation);
    p_.dtype = static_cast<int32_t>(dtype);
    p_.pool = pool;
    p_.count_include_pad = !s.ceil_mode;
    p_.channels_last = channels_last;
    complete_act_pool2d_problem(&p_);
    set_context("%s [%d,%d,%d,%d] window %dx%d/%dx%d+%dx%d pool %d act %d(%g) dtype %d %s%s",
                kernels.isa, int(s.n), int(s.k), int(s.h), int(s.w), int(p_.pool_height),
                int(p_.pool_width), int(p_.pool_stride_height), int(p_.pool_stride_width),
                int(p_.pool_pad_height), int(p_.pool_pad_width), int(pool), int(activation), param,
                int(dtype), channels_last ? "NHWC" : "NCHW", special ? " special" : "");

    uint64_t state = 7;
    const auto eighths = [&](int64_t range) {
      return (int64_t(next_random(&state)) % (2 * range) - range) / 8.0;
    };
    x_.assign(1, Array(x_count(), p_.itemsize));
    z_.resize(static_cast<size_t>(x_count()));
    bias_.assign(has_bias ? 1 : 0, Array(p_.channels, p_.itemsize));
    dy_.assign(1, Array(y_count(), p_.itemsize));
    for (int64_t k = 0; has_bias && k < p_.channels; ++k) bias_[0].set(dtype, k, eighths(8));
    const double specials[] = {NAN, INFINITY, -INFINITY, -INFINITY};
    for (int64_t i = 0; i < x_count(); ++i) {
      double value = eighths(64);
      if (special && next_random(&state) % 3 == 0) value = specials[next_random(&state) % 4];
      if (special && i < x_count() / 2) value = -INFINITY;
      x_[0].set(dtype, i, value);
      z_[size_t(i)] =
          value + (has_bias ? bias_[0].get(dtype, channel(i, p_.height * p_.width)) : 0);
    }
    for (int64_t i = 0; i < y_count(); ++i) dy_[0].set(dtype, i, eighths(16));
  }

  // Forward against the loops; leaves y, index and preactivation for backward.
  void check_forward() {
    run_forward(1, &y_, &index_, &preactivation_);
    if (!tracks()) index_.clear();
    for (int64_t n = 0; n < p_.batch; ++n) {
      for (int64_t k = 0; k < p_.channels; ++k) {
        for (int64_t p = 0; p < p_.out_height; ++p) {
          for (int64_t q = 0; q < p_.out_width; ++q) check_window(n, k, p, q);
        }
      }
    }
    std::vector<Array> plain, none;
    Array y(y_count(), p_.itemsize);
    CHECK(kernels_.act_pool2d_forward(p_, x_[0].data(), bias(), y.data(), nullptr, nullptr, 1));
    CHECK_THAT(y.equals(y_[0]), "y differs without an index");
    for (int threads : {2, 3, 7}) {
      std::vector<Array> other_y, other_index, other_preactivation;
      run_forward(threads, &other_y, &other_index, &other_preactivation);
      CHECK_THAT(other_y[0].equals(y_[0]), "y differs with %d threads", threads);
      if (tracks()) CHECK_THAT(other_index[0].equals(index_[0]), "index, %d threads", threads);
    }
  }

  void check_backward() {
    std::vector<double> expected_dx(static_cast<size_t>(x_count()), 0.0);
    std::vector<double> expected_dbias(static_cast<size_t>(p_.channels), 0.0);
    std::vector<double> scale(static_cast<size_t>(p_.channels), 1.0);
    expect_gradients(&expected_dx, &scale);
    Array dx(x_count(), p_.itemsize), dbias(p_.channels, p_.itemsize);
    CHECK(run_backward(1, &dx, &dbias));
    CHECK_THAT(dx.margins_are_whole() && dbias.margins_are_whole(), "gradients overrun");
    for (int64_t i = 0; i < x_count(); ++i) {
      const double expected = expected_dx[size_t(i)];
      expected_dbias[size_t(channel(i, p_.height * p_.width))] += expected;
      CHECK_THAT(is_near(dx.get(dtype_, i), expected, backward_bound(dtype_)),
                 "dx[%d] is %.9g, not %.9g", int(i), dx.get(dtype_, i), expected);
    }
    for (int64_t k = 0; k < p_.channels; ++k) {
      const double actual = dbias.get(dtype_, k), expected = expected_dbias[size_t(k)];
      CHECK_THAT(fabs(actual - expected) <= backward_bound(dtype_) * scale[size_t(k)],
                 "dbias[%d] is %.9g, not %.9g", int(k), actual, expected);
    }
    for (int threads : {2, 3, 7}) {
      Array other_dx(x_count(), p_.itemsize), other_dbias(p_.channels, p_.itemsize);
      CHECK(run_backward(threads, &other_dx, &other_dbias));
      CHECK_THAT(other_dx.equals(dx), "dx differs with %d threads", threads);
      CHECK_THAT(other_dbias.equals(dbias), "dbias differs with %d threads", threads);
    }
    Array alone_dx(x_count(), p_.itemsize), alone_dbias(p_.channels, p_.itemsize);
    CHECK(run_backward(1, &alone_dx, nullptr) && run_backward(1, nullptr, &alone_dbias));
    CHECK_THAT(alone_dx.equals(dx), "dx differs when it is alone");
    CHECK_THAT(alone_dbias.equals(dbias), "dbias differs when it is alone");
  }

 private:
  int64_t x_count() const { return p_.batch * p_.channels * p_.height * p_.width; }
  int64_t y_count() const { return p_.batch * p_.channels * p_.out_height * p_.out_width; }
  int64_t channel(int64_t i, int64_t plane) const {
    return p_.channels_last ? i % p_.channels : i / plane % p_.channels;
  }
  int64_t at(int64_t n, int64_t k, int64_t h, int64_t w, int64_t height, int64_t width) const {
    return p_.channels_last ? ((n * height + h) * width + w) * p_.channels + k
                            : ((n * p_.channels + k) * height + h) * width + w;
  }
  int64_t x_at(int64_t n, int64_t k, int64_t h, int64_t w) const {
    return at(n, k, h, w, p_.height, p_.width);
  }
  const void* bias() const { return bias_.empty() ? nullptr : bias_[0].data(); }
  bool tracks() const { return p_.index_itemsize != 0; }

  void run_forward(int threads, std::vector<Array>* y, std::vector<Array>* index,
                   std::vector<Array>* preactivation) {
    y->assign(1, Array(y_count(), p_.itemsize));
    index->assign(1, Array(y_count(), tracks() ? p_.index_itemsize : 1));
    preactivation->assign(1, Array(y_count(), p_.itemsize));
    const bool wants = p_.saved == Saved::kPreactivation;
    CHECK(kernels_.act_pool2d_forward(p_, x_[0].data(), bias(), (*y)[0].data(),
                                      tracks() ? (*index)[0].data() : nullptr,
                                      wants ? (*preactivation)[0].data() : nullptr, threads));
    CHECK_THAT((*y)[0].margins_are_whole() && (*index)[0].margins_are_whole() &&
                   (*preactivation)[0].margins_are_whole(),
               "forward overruns with %d threads", threads);
  }

  bool run_backward(int threads, Array* dx, Array* dbias) {
    const void* saved = nullptr;
    if (p_.saved == Saved::kOutput) saved = y_[0].data();
    if (p_.saved == Saved::kPreactivation) saved = preactivation_[0].data();
    if (p_.saved == Saved::kInput) saved = x_[0].data();
    return kernels_.act_pool2d_backward(
        p_, dy_[0].data(), saved, bias(), tracks() ? index_[0].data() : nullptr,
        dx ? dx->data() : nullptr, dbias ? dbias->data() : nullptr, threads);
  }

  // Calls body(r, s, i) for each element of a window inside the input; i indexes x.
  template <class Body>
  void each_element(int64_t n, int64_t k, int64_t p, int64_t q, const Body& body) const {
    for (int64_t r = 0; r < p_.pool_height; ++r) {
      for (int64_t s = 0; s < p_.pool_width; ++s) {
        const int64_t h = p * p_.pool_stride_height - p_.pool_pad_height + r;
        const int64_t w = q * p_.pool_stride_width - p_.pool_pad_width + s;
        if (h >= 0 && h < p_.height && w >= 0 && w < p_.width) body(r, s, x_at(n, k, h, w));
      }
    }
  }

  double divisor(int64_t n, int64_t k, int64_t p, int64_t q) const {
    if (!p_.count_include_pad) {
      int64_t count = 0;
      each_element(n, k, p, q, [&](int64_t, int64_t, int64_t) { ++count; });
      return double(count);
    }
    const int64_t h = p * p_.pool_stride_height - p_.pool_pad_height;
    const int64_t w = q * p_.pool_stride_width - p_.pool_pad_width;
    return double(least(p_.pool_height, p_.height + p_.pool_pad_height - h)) *
           double(least(p_.pool_width, p_.width + p_.pool_pad_width - w));
  }

  void check_window(int64_t n, int64_t k, int64_t p, int64_t q) {
    const int64_t i = at(n, k, p, q, p_.out_height, p_.out_width);
    const double bound = forward_bound(dtype_);
    double best = 0, sum = 0, chosen = NAN;
    int64_t position = -1;
    each_element(n, k, p, q, [&](int64_t r, int64_t s, int64_t at_x) {
      const double z = z_[size_t(at_x)], value = activate(activation_, z, param_);
      const double order = p_.monotone ? z : value;
      sum += value;
      if (position < 0 || order > best || isnan(order)) {
        best = order;
        position = r * p_.pool_width + s;
      }
      if (p_.pool == Pool::kMax && index_[0].code(i) == r * p_.pool_width + s) chosen = value;
    });
    double expected = p_.monotone ? activate(activation_, best, param_) : best;
    if (p_.pool == Pool::kAvg) expected = sum / divisor(n, k, p, q);
    if (p_.pool == Pool::kNone) expected = sum;
    const double actual = y_[0].get(dtype_, i);
    CHECK_THAT(is_near(actual, expected, bound), "y[%d] is %.9g, not %.9g", int(i), actual,
               expected);
    if (p_.pool != Pool::kMax) return;
    if (p_.monotone) {
      CHECK_THAT(index_[0].code(i) == position, "index[%d] is %d, not %d", int(i),
                 int(index_[0].code(i)), int(position));
    } else {  // what double tells apart may be equal in float
      CHECK_THAT(is_near(chosen, expected, 1e-6), "index[%d] names %.9g, not %.9g", int(i), chosen,
                 expected);
    }
  }

  // Through the positions that forward chose.
  void expect_gradients(std::vector<double>* dx, std::vector<double>* scale) {
    for (int64_t n = 0; n < p_.batch; ++n) {
      for (int64_t k = 0; k < p_.channels; ++k) {
        for (int64_t p = 0; p < p_.out_height; ++p) {
          for (int64_t q = 0; q < p_.out_width; ++q) {
            const int64_t i = at(n, k, p, q, p_.out_height, p_.out_width);
            const double dy = dy_[0].get(dtype_, i);
            (*scale)[size_t(k)] += fabs(dy);
            const double share = p_.pool == Pool::kAvg ? dy / divisor(n, k, p, q) : dy;
            each_element(n, k, p, q, [&](int64_t r, int64_t s, int64_t at_x) {
              if (p_.pool == Pool::kMax && index_[0].code(i) != r * p_.pool_width + s) return;
              (*dx)[size_t(at_x)] += share * derivative(activation_, z_[size_t(at_x)], param_);
            });
          }
        }
      }
    }
  }

  const KernelTable& kernels_;
  ActPool2dProblem p_;
  Activation activation_;
  double param_;
  DType dtype_;
  std::vector<Array> x_, bias_, dy_, y_, index_, preactivation_;
  std::vector<double> z_;
};

}  // namespace

void test_act_pool2d(const KernelTable& kernels) {
  const Shape shapes[] = {
      {1, 17, 7, 33, 2, 2, 2, 2, 0, 0, false}, {2, 3, 5, 67, 2, 2, 2, 2, 0, 0, true},
      {1, 5, 9, 38, 3, 3, 2, 2, 1, 1, false},  {1, 33, 6, 7, 3, 3, 2, 2, 0, 0, true},
      {1, 2, 6, 35, 2, 2, 1, 1, 1, 1, false},  {1, 19, 7, 9, 2, 3, 4, 5, 1, 1, false},
      {1, 3, 9, 38, 4, 2, 2, 2, 2, 1, true},   {2, 1, 4, 39, 1, 9, 3, 2, 0, 4, false},
      {2, 2, 3, 5, 6, 10, 2, 3, 3, 5, false},  {1, 2, 20, 33, 16, 17, 3, 2, 8, 8, true},
  };
  const Shape threaded = {2, 18, 33, 65, 3, 3, 2, 2, 1, 1, false};
  const double params[] = {0, 0, 0.01, 0, 1, 0, 0, 0, 0, 0, 3, 0};
  for (int d = 0; d < 4; ++d) {
    for (int layout = 0; layout < 2; ++layout) {
      for (int a = 0; a < baseline::kActivations; ++a) {
        for (int pool = 0; pool < 3; ++pool) {
          for (const Shape& shape : shapes) {
            Case here(kernels, shape, Pool(pool), Activation(a), params[a], DType(d), layout,
                      shape.k % 2 == 1, false);
            here.check_forward();
            here.check_backward();
            if (pool == 2 && &shape == &shapes[3]) break;  // without a pool only the size counts
          }
        }
      }
      for (int pool = 0; pool < 3; ++pool) {
        Case large(kernels, threaded, Pool(pool), Activation::kTanh, 0, DType(d), layout, true,
                   false);
        large.check_forward();
        large.check_backward();
        Case special(kernels, shapes[pool], Pool::kMax, Activation::kIdentity, 0, DType(d), layout,
                     false, true);
        special.check_forward();
      }
    }
  }
}

}  // namespace test
}  // namespace cmf

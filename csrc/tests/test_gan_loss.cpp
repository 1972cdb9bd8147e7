// gan_loss of every instruction set: every function against its definition in long double, sums,
// gradients, elements; and the same bits for every number of threads.
#include <math.h>
#include <string.h>

#include <vector>

#include "common/gan_loss_problem.h"
#include "cpu/kernel_table.h"
#include "tests/check.h"

namespace cmf {
namespace test {

void test_gan_loss(const KernelTable& kernels);

namespace {

constexpr int32_t kFloat32 = 0;
constexpr int32_t kFloat64 = 1;

struct Result {
  long double value;
  long double dx;
  long double dy;
};

int operands_of(GanLossFunction function) {
  switch (function) {
    case GanLossFunction::kLogLossLogitsTargetWeight:
    case GanLossFunction::kLogLossProbabilitiesTargetWeight:
      return 3;
    case GanLossFunction::kRelativistic:
    case GanLossFunction::kLogLossLogitsTarget:
    case GanLossFunction::kLogLossProbabilitiesTarget:
      return 2;
    default:
      return 1;
  }
}

bool takes_probability(GanLossFunction function) {
  return function == GanLossFunction::kLogLossProbabilities ||
         function == GanLossFunction::kLogLossProbabilitiesTarget ||
         function == GanLossFunction::kLogLossProbabilitiesTargetWeight;
}

Result log_loss_logits(long double x, long double target) {
  const long double softplus = x > 0 ? x + log1pl(expl(-x)) : log1pl(expl(x));
  return {softplus - target * x, 1 / (1 + expl(-x)) - target, -x};
}

Result log_loss_probabilities(long double p, long double target) {
  return {-(target * logl(p) + (1 - target) * log1pl(-p)), (p - target) / (p * (1 - p)),
          log1pl(-p) - logl(p)};
}

Result weighted(Result result, long double weight) {
  return {result.value * weight, result.dx * weight, result.dy * weight};
}

// The definition; x, y, w are the operands.
Result exact(GanLossFunction function, long double x, long double y, long double w,
             long double parameter) {
  switch (function) {
    case GanLossFunction::kLogLossLogits:
      return log_loss_logits(x, parameter);
    case GanLossFunction::kLogLossProbabilities:
      return log_loss_probabilities(x, parameter);
    case GanLossFunction::kLeastSquares:
      return {(x - parameter) * (x - parameter) / 2, x - parameter, 0};
    case GanLossFunction::kHinge: {
      const long double margin = 1 + parameter * x;
      return {margin > 0 ? margin : 0, margin > 0 ? parameter : 0, 0};
    }
    case GanLossFunction::kLinear:
      return {x, 1, 0};
    case GanLossFunction::kRelativistic: {
      const Result d = log_loss_logits(x - y, 0);
      return {d.value, d.dx, -d.dx};
    }
    case GanLossFunction::kLogLossLogitsTarget:
      return log_loss_logits(x, y);
    case GanLossFunction::kLogLossProbabilitiesTarget:
      return log_loss_probabilities(x, y);
    case GanLossFunction::kLogLossLogitsTargetWeight:
      return weighted(log_loss_logits(x, y), w);
    case GanLossFunction::kLogLossProbabilitiesTargetWeight:
      return weighted(log_loss_probabilities(x, y), w);
  }
  return {};
}

double parameter_of(GanLossFunction function, int term) {
  if (function == GanLossFunction::kHinge) return term % 2 ? 1.0 : -1.0;
  return term % 2 ? 0.0 : 0.9;  // smoothed labels
}

// Two terms of different lengths, as real and generated logits.
template <class T>
class Case {
 public:
  Case(const KernelTable& kernels, GanLossFunction function, GanLossReduction reduction,
       int64_t count)
      : kernels_(kernels), operands_(operands_of(function)) {
    const bool same_count = reduction == GanLossReduction::kNone;
    for (int term = 0; term < 2; ++term) {
      const int64_t length = term == 0 || same_count ? count : count / 2 + 3;
      terms_.push_back({length, parameter_of(function, term), term ? -0.75 : 0.5});
    }
    problem_ = GanLossProblem{};
    problem_.function = function;
    problem_.reduction = reduction;
    problem_.dtype = problem_.loss_dtype = sizeof(T) == 4 ? kFloat32 : kFloat64;
    problem_.operands = operands_;
    problem_.term_count = 2;
    problem_.terms = terms_.data();
    uint64_t state = 1000 * static_cast<uint64_t>(count) + static_cast<uint64_t>(function);
    for (int index = 0; index < 2 * operands_; ++index) {
      const int position = index % operands_;
      const bool unit =
          position == 0 ? takes_probability(function) : function != GanLossFunction::kRelativistic;
      std::vector<T> values(static_cast<size_t>(terms_[index / operands_].count));
      for (T& value : values) {
        value = static_cast<T>(unit ? random_between(&state, 0.02f, 0.98f)
                                    : random_between(&state, -9, 9));
      }
      values_.push_back(values);
    }
    for (const std::vector<T>& values : values_) pointers_.push_back(values.data());
    set_context("%s function %d reduction %d %s x %lld", kernels.isa, static_cast<int>(function),
                static_cast<int>(reduction), sizeof(T) == 4 ? "float" : "double",
                static_cast<long long>(count));
  }

  void run() {
    if (problem_.reduction == GanLossReduction::kNone) {
      check_elements();
    } else {
      check_reduced();
    }
  }

 private:
  typedef std::vector<std::vector<T>> Arrays;

  // One guard element behind each.
  Arrays gradient_arrays() const {
    Arrays arrays;
    for (const std::vector<T>& values : values_) {
      arrays.emplace_back(values.size() + 1, static_cast<T>(kGuard));
    }
    return arrays;
  }
  std::vector<void*> gradient_pointers(Arrays* arrays) const {
    std::vector<void*> pointers;
    for (size_t index = 0; index < arrays->size(); ++index) {
      // weights have no gradient
      pointers.push_back(static_cast<int>(index) % operands_ < 2 ? (*arrays)[index].data()
                                                                 : nullptr);
    }
    return pointers;
  }

  Result exact_at(int term, int64_t i) const {
    const auto operand = [&](int position) -> long double {
      return position < operands_ ? values_[term * operands_ + position][i] : 0;
    };
    return exact(problem_.function, operand(0), operand(1), operand(2), terms_[term].parameter);
  }

  static bool close(long double got, long double expected, long double scale) {
    // some ten operations of one rounding each; 1 - p and t - 1 cancel
    const long double unit = sizeof(T) == 4 ? 0x1p-24L : 0x1p-53L;
    return fabsl(got - expected) <= 32 * unit * (fabsl(expected) + scale);
  }

  void check_gradients(const Arrays& gradients, long double incoming, const T* incoming_values) {
    for (int term = 0; term < 2; ++term) {
      const int64_t count = terms_[term].count;
      const long double mean = problem_.reduction == GanLossReduction::kMean
                                   ? 1.0L / static_cast<long double>(count)
                                   : 1;
      for (int64_t i = 0; i < count; ++i) {
        const Result result = exact_at(term, i);
        const long double factor =
            terms_[term].scale * mean * (incoming_values ? incoming_values[i] : incoming);
        for (int position = 0; position < operands_ && position < 2; ++position) {
          const T got = gradients[term * operands_ + position][i];
          const long double expected = factor * (position ? result.dy : result.dx);
          CHECK_THAT(close(got, expected, fabsl(factor)),
                     "gradient %d of term %d at %lld: %g, not %g", position, term,
                     static_cast<long long>(i), double(got), double(expected));
        }
      }
      for (int position = 0; position < operands_; ++position) {
        CHECK(gradients[term * operands_ + position][count] == static_cast<T>(kGuard));
      }
    }
  }

  T forward(Arrays* gradients, int threads) {
    std::vector<void*> pointers(values_.size(), nullptr);
    if (gradients) pointers = gradient_pointers(gradients);
    T loss = static_cast<T>(kGuard);
    CHECK(kernels_.gan_loss_forward(problem_, pointers_.data(), pointers.data(), &loss, threads) ==
          0);
    return loss;
  }

  void check_reduced() {
    long double expected = 0;
    long double magnitude = 0;
    for (int term = 0; term < 2; ++term) {
      long double sum = 0;
      long double absolute = 0;
      for (int64_t i = 0; i < terms_[term].count; ++i) {
        const long double value = exact_at(term, i).value;
        sum += value;
        absolute += fabsl(value);
      }
      const long double divisor =
          problem_.reduction == GanLossReduction::kMean ? terms_[term].count : 1;
      expected += terms_[term].scale * sum / divisor;
      magnitude += fabsl(terms_[term].scale) * absolute / divisor;
    }
    Arrays gradients = gradient_arrays();
    const T loss = forward(&gradients, 1);
    CHECK_THAT(close(loss, expected, magnitude), "loss %.9g, not %.9g", double(loss),
               double(expected));
    check_gradients(gradients, 1, nullptr);
    CHECK(same_bits(forward(nullptr, 1), loss));

    Arrays scaled = gradient_arrays();
    const T incoming = static_cast<T>(-2.5);
    kernels_.gan_loss_backward(problem_, &incoming, pointers_.data(),
                               gradient_pointers(&scaled).data(), 1);
    check_gradients(scaled, incoming, nullptr);

    for (const int threads : {2, 3, 8}) {
      Arrays other = gradient_arrays();
      CHECK_THAT(same_bits(forward(&other, threads), loss), "loss with %d threads", threads);
      CHECK_THAT(same_arrays(other, gradients), "gradients with %d threads", threads);
      Arrays again = gradient_arrays();
      kernels_.gan_loss_backward(problem_, &incoming, pointers_.data(),
                                 gradient_pointers(&again).data(), threads);
      CHECK_THAT(same_arrays(again, scaled), "backward with %d threads", threads);
    }
  }

  void check_elements() {
    const int64_t count = terms_[0].count;
    const std::vector<void*> none(values_.size(), nullptr);
    std::vector<T> losses(static_cast<size_t>(count) + 1, static_cast<T>(kGuard));
    CHECK(kernels_.gan_loss_forward(problem_, pointers_.data(), none.data(), losses.data(), 1) ==
          0);
    std::vector<T> incoming(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      incoming[i] = static_cast<T>(i % 7 - 3);
      const long double first = terms_[0].scale * exact_at(0, i).value;
      const long double second = terms_[1].scale * exact_at(1, i).value;
      CHECK_THAT(close(losses[i], first + second, fabsl(first) + fabsl(second) + 0.1L),
                 "loss %lld: %g, not %g", static_cast<long long>(i), double(losses[i]),
                 double(first + second));
    }
    CHECK(losses[count] == static_cast<T>(kGuard));
    Arrays gradients = gradient_arrays();
    kernels_.gan_loss_backward(problem_, incoming.data(), pointers_.data(),
                               gradient_pointers(&gradients).data(), 1);
    check_gradients(gradients, 0, incoming.data());
    for (const int threads : {2, 5}) {
      std::vector<T> other(losses.size(), static_cast<T>(kGuard));
      kernels_.gan_loss_forward(problem_, pointers_.data(), none.data(), other.data(), threads);
      CHECK_THAT(memcmp(other.data(), losses.data(), sizeof(T) * other.size()) == 0,
                 "elements with %d threads", threads);
    }
  }

  static bool same_bits(T a, T b) { return memcmp(&a, &b, sizeof a) == 0; }
  static bool same_arrays(const Arrays& a, const Arrays& b) {
    for (size_t i = 0; i < a.size(); ++i) {
      if (memcmp(a[i].data(), b[i].data(), sizeof(T) * a[i].size()) != 0) return false;
    }
    return true;
  }

  static constexpr double kGuard = -12345.0;
  const KernelTable& kernels_;
  int operands_;
  GanLossProblem problem_;
  std::vector<GanLossTerm> terms_;
  Arrays values_;
  std::vector<const void*> pointers_;
};

// A value outside [0, 1] in any place is told, and NaN is one.
void check_bad_probabilities(const KernelTable& kernels) {
  set_context("%s bad probabilities", kernels.isa);
  const GanLossTerm term = {37, 1.0, 1.0};
  GanLossProblem problem = {GanLossFunction::kLogLossProbabilities,
                            GanLossReduction::kMean,
                            kFloat32,
                            kFloat32,
                            1,
                            1,
                            &term};
  for (int place = 0; place < 37; ++place) {
    for (const float bad : {-0.001f, 1.0001f, NAN, INFINITY, 0.0f, 1.0f}) {
      std::vector<float> p(37, 0.5f);
      p[place] = bad;
      const void* operand = p.data();
      void* gradient = nullptr;
      float loss;
      const int flags = kernels.gan_loss_forward(problem, &operand, &gradient, &loss, 1);
      CHECK_THAT(flags == (bad == 0.0f || bad == 1.0f ? 0 : kGanLossBadProbability),
                 "p[%d] = %g gives %d", place, double(bad), flags);
    }
  }
}

// -sigmoid(-x), the gradient of a logit held against 1, keeps its digits however small it is: some
// four roundings of the exponential, the sum, the quotient and the product.
void check_small_gradients(const KernelTable& kernels) {
  std::vector<float> logits;
  for (float x = 1e-6f; x < 87; x *= 1.0013f) logits.push_back(x);
  const GanLossTerm term = {static_cast<int64_t>(logits.size()), 1.0, 1.0};
  const GanLossProblem problem = {
      GanLossFunction::kLogLossLogits, GanLossReduction::kSum, kFloat32, kFloat32, 1, 1, &term};
  std::vector<float> gradients(logits.size());
  const void* operand = logits.data();
  void* gradient = gradients.data();
  float loss;
  kernels.gan_loss_forward(problem, &operand, &gradient, &loss, 1);
  set_context("%s small gradients", kernels.isa);
  for (size_t i = 0; i < logits.size(); ++i) {
    const long double expected = -1 / (1 + expl(static_cast<long double>(logits[i])));
    CHECK_THAT(fabsl(gradients[i] - expected) <= 5 * 0x1p-24L * fabsl(expected),
               "at %g: %g, not %g", double(logits[i]), double(gradients[i]), double(expected));
  }
}

// Sums of logarithms are taken of products: those of the largest odds must not overflow, those of
// the smallest must keep their digits.
template <class T>
void check_products(const KernelTable& kernels) {
  for (const T logit : {T(0), T(1e-30), T(1), T(8), T(20), T(80), T(INFINITY)}) {
    for (const int count : {1, 37, 512, 5000}) {
      set_context("%s %d logits of %g %s", kernels.isa, count, double(logit),
                  sizeof(T) == 4 ? "float" : "double");
      const GanLossTerm term = {count, 1.0, 1.0};
      const int32_t dtype = sizeof(T) == 4 ? kFloat32 : kFloat64;
      const GanLossProblem problem = {
          GanLossFunction::kLogLossLogits, GanLossReduction::kSum, dtype, dtype, 1, 1, &term};
      const std::vector<T> logits(static_cast<size_t>(count), logit);
      const void* operand = logits.data();
      void* gradient = nullptr;
      T loss;
      kernels.gan_loss_forward(problem, &operand, &gradient, &loss, 1);
      const long double expected = count * log1pl(expl(-static_cast<long double>(logit)));
      const long double unit = sizeof(T) == 4 ? 0x1p-24L : 0x1p-53L;
      CHECK_THAT(fabsl(loss - expected) <= 8 * unit * expected, "%.9g, not %.9g", double(loss),
                 double(expected));
    }
  }
}

}  // namespace

void test_gan_loss(const KernelTable& kernels) {
  for (int function = 0; function < kGanLossFunctions; ++function) {
    for (const GanLossReduction reduction :
         {GanLossReduction::kNone, GanLossReduction::kMean, GanLossReduction::kSum}) {
      for (const int64_t count : {1, 19, 64, 1031}) {
        const GanLossFunction f = static_cast<GanLossFunction>(function);
        Case<float>(kernels, f, reduction, count).run();
        Case<double>(kernels, f, reduction, count).run();
      }
    }
  }
  // long enough for several chunks and threads
  Case<float>(kernels, GanLossFunction::kLogLossLogits, GanLossReduction::kMean, 70003).run();
  Case<float>(kernels, GanLossFunction::kRelativistic, GanLossReduction::kSum, 70003).run();
  Case<double>(kernels, GanLossFunction::kHinge, GanLossReduction::kMean, 40001).run();
  Case<float>(kernels, GanLossFunction::kLinear, GanLossReduction::kNone, 70003).run();
  check_small_gradients(kernels);
  check_products<float>(kernels);
  check_products<double>(kernels);
  check_bad_probabilities(kernels);
}

}  // namespace test
}  // namespace cmf

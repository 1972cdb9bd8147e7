#include "tests/ulp.h"

#include <math.h>
#include <string.h>

namespace cmf {
namespace test {
namespace {

// Written apart from the kernels' formulas: without cancellation, in double.
double exact_sigmoid(double x) { return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)); }
double exact_softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }

constexpr int kBatch = 4096;
static_assert(kBatch % kArrayMultiple == 0, "arrays hold whole vectors");

// The distance of two neighbours around a value of this magnitude, subnormals' below 2^-126.
double unit_in_last_place(double value) {
  int exponent;
  frexp(value, &exponent);  // value = [0.5, 1) * 2^exponent
  if (exponent > 128) exponent = 128;
  return ldexp(1.0, exponent - 24 < -149 ? -149 : exponent - 24);
}

// Infinity stands for the first number beyond the largest float, so that a result that should have
// been infinite, or should not, is off by as much as it looks.
double as_number(double value) {
  constexpr double kBeyond = 0x1p128;
  return value > kBeyond ? kBeyond : value < -kBeyond ? -kBeyond : value;
}

}  // namespace

const ExactFunction kExactFunctions[kMathFunctions] = {
    {"exp", exp, {{0.0f, 1.0f}, {-0.0f, 1.0f}, {INFINITY, INFINITY}, {-INFINITY, 0.0f}}},
    {"expm1", expm1, {{0.0f, 0.0f}, {-0.0f, -0.0f}, {INFINITY, INFINITY}, {-INFINITY, -1.0f}}},
    {"log", log, {{0.0f, -INFINITY}, {-0.0f, -INFINITY}, {INFINITY, INFINITY}, {1.0f, 0.0f}}},
    {"log1p", log1p, {{0.0f, 0.0f}, {-0.0f, -0.0f}, {INFINITY, INFINITY}, {-1.0f, -INFINITY}}},
    {"tanh", tanh, {{0.0f, 0.0f}, {-0.0f, -0.0f}, {INFINITY, 1.0f}, {-INFINITY, -1.0f}}},
    {"erf", erf, {{0.0f, 0.0f}, {-0.0f, -0.0f}, {INFINITY, 1.0f}, {-INFINITY, -1.0f}}},
    {"sigmoid", exact_sigmoid, {{0.0f, 0.5f}, {-0.0f, 0.5f}, {INFINITY, 1.0f}, {-INFINITY, 0.0f}}},
    {"softplus",
     exact_softplus,
     {{200.0f, 200.0f}, {-200.0f, 0.0f}, {INFINITY, INFINITY}, {-INFINITY, 0.0f}}},
};

void add_errors(const float* x, const double* exact, const float* y, int count, UlpReport* report) {
  for (int i = 0; i < count; ++i) {
    const bool wrong =
        isnan(exact[i]) ? !isnan(y[i]) : isnan(y[i]) || signbit(exact[i]) != signbit(y[i]);
    if (wrong && report->wrong++ == 0) report->wrong_at = x[i];
    if (wrong || isnan(y[i])) continue;
    const double value = as_number(exact[i]);
    const double error =
        fabs(as_number(static_cast<double>(y[i])) - value) / unit_in_last_place(value);
    if (error > report->worst) {
      report->worst = error;
      report->worst_at = x[i];
    }
  }
}

void measure(const ExactFunction& function, const ArrayFunction* candidates, int candidate_count,
             uint64_t first, uint64_t last, uint32_t step, UlpReport* reports) {
  float x[kBatch], y[kBatch];
  double exact[kBatch];
  for (uint64_t bits = first; bits < last;) {
    int count = 0;
    for (; count < kBatch && bits < last; bits += step, ++count) {
      const uint32_t pattern = static_cast<uint32_t>(bits);
      memcpy(&x[count], &pattern, sizeof pattern);
      exact[count] = function.exact(static_cast<double>(x[count]));
    }
    for (int i = count; i < kBatch; ++i) x[i] = 0;
    for (int candidate = 0; candidate < candidate_count; ++candidate) {
      candidates[candidate](x, y, kBatch);
      add_errors(x, exact, y, count, &reports[candidate]);
    }
  }
}

void merge(const UlpReport& from, UlpReport* into) {
  if (from.worst > into->worst) {
    into->worst = from.worst;
    into->worst_at = from.worst_at;
  }
  if (into->wrong == 0) into->wrong_at = from.wrong_at;
  into->wrong += from.wrong;
}

}  // namespace test
}  // namespace cmf

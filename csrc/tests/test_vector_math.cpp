// vector_math.h: a strided sample of what `make ulp` measures in full, and the special values.
#include <math.h>
#include <string.h>

#include "cpu/simd.h"
#include "cpu/vector_math.h"
#include "tests/isa_tests.h"
#include "tests/ulp.h"

namespace cmf {
namespace CMF_ISA {

const test::ArrayFunctions* array_functions();

namespace {

constexpr double kLimit = 2.0;     // ulp
constexpr uint32_t kStep = 16411;  // a prime: some 260 000 arguments of every magnitude
constexpr int kCount = test::kArrayMultiple;

bool same_bits(float a, float b) { return memcmp(&a, &b, sizeof a) == 0; }

void check_sample(int index) {
  const test::ExactFunction& function = test::kExactFunctions[index];
  test::UlpReport report = {};
  test::measure(function, &array_functions()->of[index], 1, 0, uint64_t{1} << 32, kStep, &report);
  CHECK_THAT(report.worst <= kLimit, "%s(%a): %.3f ulp", function.name, double(report.worst_at),
             report.worst);
  CHECK_THAT(report.wrong == 0, "%s(%a) is a wrong NaN or sign", function.name,
             double(report.wrong_at));
}

void check_specials(int index) {
  const test::ExactFunction& function = test::kExactFunctions[index];
  float x[kCount], y[kCount];
  for (int special = 0; special < 5; ++special) {
    // NaN is the fifth; each in one lane among ordinary neighbours
    const float argument = special < 4 ? function.specials[special][0] : NAN;
    for (int lane = 0; lane < kCount; ++lane) x[lane] = 0.75f;
    const int place = special % kLanes<float>;
    x[place] = argument;
    array_functions()->of[index](x, y, kCount);
    if (special == 4) {
      CHECK_THAT(isnan(y[place]), "%s(NaN) = %a", function.name, double(y[place]));
    } else {
      CHECK_THAT(same_bits(y[place], function.specials[special][1]), "%s(%a) = %a", function.name,
                 double(argument), double(y[place]));
    }
    const float usual = y[(place + 1) % kLanes<float>];
    CHECK_THAT(::fabs(double(usual) - function.exact(0.75)) < 1e-6,
               "%s: a special value's neighbour", function.name);
  }
}

// Where the result leaves the normal numbers, and the arguments that are subnormal themselves.
void check_edges(int index) {
  const test::ExactFunction& function = test::kExactFunctions[index];
  const float edges[kCount] = {0x1p-149f,   -0x1p-149f,   0x1p-127f,       -0x1.8p-130f,
                               88.722839f,  88.7228394f,  88.72285f,       -87.3365447f,
                               -103.27893f, -103.972076f, -103.972084f,    0x1.fffffep127f,
                               -0x1p-24f,   0x1p-24f,     -0x1.fffffep-1f, 9.01f};
  float y[kCount];
  double exact[kCount];
  array_functions()->of[index](edges, y, kCount);
  for (int i = 0; i < kCount; ++i) exact[i] = function.exact(static_cast<double>(edges[i]));
  test::UlpReport report = {};
  test::add_errors(edges, exact, y, kCount, &report);
  CHECK_THAT(report.worst <= kLimit, "%s(%a): %.3f ulp", function.name, double(report.worst_at),
             report.worst);
  CHECK_THAT(report.wrong == 0, "%s(%a) is a wrong NaN or sign", function.name,
             double(report.wrong_at));
}

// One lane must not depend on its place: partial vectors give the same bits as whole ones.
void check_places(int index) {
  uint64_t state = 7;
  float x[kCount], y[kCount], rotated[kCount], expected[kCount];
  for (int lane = 0; lane < kCount; ++lane) x[lane] = test::random_between(&state, -12, 12);
  array_functions()->of[index](x, expected, kCount);
  for (int shift = 1; shift < kCount; ++shift) {
    for (int lane = 0; lane < kCount; ++lane) rotated[lane] = x[(lane + shift) % kCount];
    array_functions()->of[index](rotated, y, kCount);
    for (int lane = 0; lane < kCount; ++lane) {
      const float other = expected[(lane + shift) % kCount];
      CHECK(same_bits(y[lane], other) || (isnan(y[lane]) && isnan(other)));
    }
  }
}

typedef Vec<double> (*DoubleFunction)(Vec<double>);
#define CMF_DOUBLE(function) [](Vec<double> x) { return CMF_ISA::function(x); }

void check_double(int index, DoubleFunction function) {
  const double arguments[] = {-745.0, -30.0, -1.0 + 0x1p-50, -0.3, -0x1p-60, 0x1p-1040,
                              0.4,    1.0,   3.25,           17.0, 40.0,     700.0};
  for (const double argument : arguments) {
    const Vec<double> y = function(broadcast<double>(argument));
    const double exact = test::kExactFunctions[index].exact(argument);
    for (int lane = 0; lane < kLanes<double>; ++lane) {
      const bool both_nan = isnan(exact) && isnan(y[lane]);
      CHECK_THAT(both_nan || ::fabs(y[lane] - exact) <= 4 * 0x1p-53 * ::fabs(exact) + 0x1p-1074,
                 "%s(%a) = %a, not %a", test::kExactFunctions[index].name, argument, y[lane],
                 exact);
    }
  }
}

}  // namespace

void test_vector_math() {
  const DoubleFunction doubles[test::kMathFunctions] = {
      CMF_DOUBLE(exp),  CMF_DOUBLE(expm1), CMF_DOUBLE(log),     CMF_DOUBLE(log1p),
      CMF_DOUBLE(tanh), CMF_DOUBLE(erf),   CMF_DOUBLE(sigmoid), CMF_DOUBLE(softplus),
  };
  for (int index = 0; index < test::kMathFunctions; ++index) {
    check_sample(index);
    check_specials(index);
    check_edges(index);
    check_places(index);
    check_double(index, doubles[index]);
  }
}

}  // namespace CMF_ISA
}  // namespace cmf

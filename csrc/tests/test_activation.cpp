// activation.h against formulas in double, written apart from it; then the edges, one by one.
#include <math.h>

#include "common/activation.h"
#include "tests/isa_tests.h"

namespace cmf {
namespace CMF_ISA {
namespace {

const char* const kNames[kActivations] = {"identity", "relu",    "leaky_relu", "relu6",
                                          "elu",      "silu",    "gelu",       "gelu_tanh",
                                          "tanh",     "sigmoid", "softplus",   "hardswish"};

// The definitions, in long double so that their own rounding does not matter.
long double value_of(Activation activation, long double z, long double param) {
  switch (activation) {
    case Activation::kIdentity:
      return z;
    case Activation::kRelu:
      return z > 0 ? z : 0;
    case Activation::kLeakyRelu:
      return z > 0 ? z : param * z;
    case Activation::kRelu6:
      return z < 0 ? 0 : z > 6 ? 6 : z;
    case Activation::kElu:
      return z > 0 ? z : param * expm1l(z);
    case Activation::kSilu:
      return z / (1 + expl(-z));
    case Activation::kGelu:
      return z * erfcl(-z / sqrtl(2)) / 2;
    case Activation::kGeluTanh:
      return z * (1 + tanhl(sqrtl(2 / acosl(-1)) * (z + 0.044715L * z * z * z))) / 2;
    case Activation::kTanh:
      return tanhl(z);
    case Activation::kSigmoid:
      return 1 / (1 + expl(-z));
    case Activation::kSoftplus:
      return param * z > 20 ? z : log1pl(expl(param * z)) / param;
    case Activation::kHardswish:
      return z <= -3 ? 0 : z >= 3 ? z : z * (z + 3) / 6;
  }
  return NAN;
}

// A central difference of the definition: no formula of a derivative to get wrong twice. Its error
// is about h^2 + 2^-64 / h; at a kink it means nothing, so arguments keep away from kinks.
long double slope_of(Activation activation, long double z, long double param) {
  const long double h = 0x1p-20L;
  return (value_of(activation, z + h, param) - value_of(activation, z - h, param)) / (2 * h);
}

struct Tolerance {
  double relative;
  double absolute;  // times max(1, |z|): 1 + erf(z) and 1 + tanh(z) cancel left of zero
};

template <class C>
Tolerance value_tolerance() {
  const double unit = sizeof(C) == 4 ? 0x1p-24 : 0x1p-53;
  return {8 * unit, 4 * unit};
}

// The gradient formulas have more steps; double's truth is a difference quotient.
template <class C>
Tolerance gradient_tolerance() {
  return sizeof(C) == 4 ? Tolerance{32 * 0x1p-24, 16 * 0x1p-24} : Tolerance{1e-10, 1e-10};
}

bool close(double got, long double expected, double z, Tolerance tolerance) {
  const double magnitude = ::fabs(z) > 1 ? ::fabs(z) : 1;
  return ::fabs(static_cast<double>(got - expected)) <=
         tolerance.relative * ::fabs(static_cast<double>(expected)) +
             tolerance.absolute * magnitude;
}

template <Activation A, class C>
C activate_one(C z, C param) {
  return activate<A>(broadcast<C>(z), param)[kLanes<C> - 1];
}
template <Activation A, class C>
C from_input_one(C dy, C z, C param) {
  return backward_from_input<A>(broadcast<C>(dy), broadcast<C>(z), param)[kLanes<C> - 1];
}

template <Activation A, class C, bool kFromOutput>
struct FromOutput {
  static C one(C dy, C y, C param) {
    return backward_from_output<A>(broadcast<C>(dy), broadcast<C>(y), param)[kLanes<C> - 1];
  }
};
template <Activation A, class C>
struct FromOutput<A, C, false> {
  static C one(C, C, C) { return C(NAN); }
};

// Whether any parameter lets the derivative follow from the output.
constexpr bool may_derive_from_output(Activation activation) {
  return activation != Activation::kSilu && activation != Activation::kGelu &&
         activation != Activation::kGeluTanh && activation != Activation::kHardswish;
}

template <Activation A, class C>
void check_grid(C param) {
  const char* name = kNames[static_cast<int>(A)];
  const bool from_output = derives_from_output(A, double(param));
  const C dy = C(-1.5);
  bool rises = true;
  C before = activate_one<A>(C(-40), param);
  // steps of 37/1024 from an odd place: never on a kink (0, 3, 6, 20 / beta)
  for (C z = C(-40) + C(1) / C(4096); z < C(40); z += C(37) / C(1024)) {
    const C y = activate_one<A>(z, param);
    const long double expected = value_of(A, z, param);
    CHECK_THAT(close(double(y), expected, double(z), value_tolerance<C>()),
               "%s(%.9g; %g) = %.17g, not %.17g", name, double(z), double(param), double(y),
               double(expected));
    rises = rises && y >= before;
    before = y;
    const double kink = A == Activation::kSoftplus ? 20.0 / double(param) : 0;
    if (::fabs(double(z) - kink) < 1e-3) continue;
    const long double slope = dy * slope_of(A, z, param);
    const C gradient = from_input_one<A>(dy, z, param);
    CHECK_THAT(close(double(gradient), slope, double(z), gradient_tolerance<C>()),
               "%s'(%.9g; %g) from z: %.17g, not %.17g", name, double(z), double(param),
               double(gradient), double(slope));
    if (!from_output) continue;
    const C from_y = FromOutput<A, C, may_derive_from_output(A)>::one(dy, y, param);
    CHECK_THAT(close(double(from_y), slope, double(z), gradient_tolerance<C>()),
               "%s'(%.9g; %g) from y: %.17g, not %.17g", name, double(z), double(param),
               double(from_y), double(slope));
  }
  // leaky_relu with slope 0 never falls here, yet it is not called monotone: -inf becomes NaN
  if (!(A == Activation::kLeakyRelu && param == C(0))) {
    CHECK_THAT(rises == is_monotone(A, double(param)), "is_monotone(%s, %g)", name, double(param));
  }
}

template <class C>
bool same(C a, C b) {
  return a == b || (isnan(a) && isnan(b));
}

// z, act(z), dy * act'(z) with dy = 1: what torch 2.13 gives where its vector loop and its scalar
// tail agree, and the choice that activation.h states where they do not.
struct Edge {
  double z;
  double y;
  double gradient;
};

template <Activation A, class C, int kCount>
void check_edges(const Edge (&edges)[kCount], C param) {
  for (const Edge& edge : edges) {
    const C y = activate_one<A>(C(edge.z), param);
    const C gradient = from_input_one<A>(C(1), C(edge.z), param);
    CHECK_THAT(same(y, C(edge.y)), "%s(%g) = %g", kNames[static_cast<int>(A)], edge.z, double(y));
    CHECK_THAT(same(gradient, C(edge.gradient)), "%s'(%g) = %g", kNames[static_cast<int>(A)],
               edge.z, double(gradient));
    if (!derives_from_output(A, double(param))) continue;
    const C from_y = FromOutput<A, C, may_derive_from_output(A)>::one(C(1), y, param);
    CHECK_THAT(same(from_y, C(edge.gradient)), "%s'(%g) from y = %g", kNames[static_cast<int>(A)],
               edge.z, double(from_y));
  }
}

template <class C>
void check_all_edges() {
  const double inf = INFINITY;
  const double nan = NAN;
  const Edge relu[] = {{-inf, 0, 0}, {0, 0, 0}, {inf, inf, 1}, {nan, nan, 1}};
  check_edges<Activation::kRelu>(relu, C(0));
  const Edge leaky[] = {{-inf, -inf, 0.25}, {0, 0, 0.25}, {inf, inf, 1}, {nan, nan, 0.25}};
  check_edges<Activation::kLeakyRelu>(leaky, C(0.25));
  const Edge relu6[] = {{-inf, 0, 0}, {0, 0, 0}, {3, 3, 1}, {6, 6, 0}, {inf, 6, 0}};
  check_edges<Activation::kRelu6>(relu6, C(0));
  CHECK(isnan(activate_one<Activation::kRelu6>(C(NAN), C(0))));
  const Edge elu[] = {{-inf, -0.5, 0}, {0, 0, 0.5}, {inf, inf, 1}, {nan, nan, nan}};
  check_edges<Activation::kElu>(elu, C(0.5));
  const Edge silu[] = {{-inf, nan, nan}, {0, 0, 0.5}, {inf, inf, nan}, {nan, nan, nan}};
  check_edges<Activation::kSilu>(silu, C(0));
  // at infinity torch's vector loop gives NaN for gelu, its scalar tail infinity
  const Edge gelu[] = {{-inf, nan, nan}, {0, 0, 0.5}, {inf, inf, nan}, {nan, nan, nan}};
  check_edges<Activation::kGelu>(gelu, C(0));
  check_edges<Activation::kGeluTanh>(gelu, C(0));
  const Edge tanh_edges[] = {{-inf, -1, 0}, {0, 0, 1}, {inf, 1, 0}, {nan, nan, nan}};
  check_edges<Activation::kTanh>(tanh_edges, C(0));
  const Edge sigmoid_edges[] = {{-inf, 0, 0}, {0, 0.5, 0.25}, {inf, 1, 0}, {nan, nan, nan}};
  check_edges<Activation::kSigmoid>(sigmoid_edges, C(0));
  const Edge softplus_edges[] = {{-inf, 0, 0}, {21, 21, 1}, {inf, inf, 1}, {nan, nan, nan}};
  check_edges<Activation::kSoftplus>(softplus_edges, C(1));
  const Edge hardswish[] = {{-inf, nan, 0}, {-3, 0, 0}, {0, 0, 0.5}, {3, 3, 1}, {inf, inf, 1}};
  check_edges<Activation::kHardswish>(hardswish, C(0));

  // an infinite gradient behind a dead unit stays out; through a live one it passes
  CHECK(from_input_one<Activation::kRelu>(C(INFINITY), C(-1), C(0)) == C(0));
  CHECK(from_input_one<Activation::kRelu>(C(NAN), C(-1), C(0)) == C(0));
  CHECK(from_input_one<Activation::kRelu6>(C(INFINITY), C(7), C(0)) == C(0));
  CHECK(from_input_one<Activation::kHardswish>(C(INFINITY), C(-4), C(0)) == C(0));
  CHECK(isinf(from_input_one<Activation::kRelu>(C(INFINITY), C(1), C(0))));
}

void check_predicates() {
  // the parameters that change the answer
  CHECK(!is_monotone(Activation::kLeakyRelu, -0.1) && is_monotone(Activation::kLeakyRelu, 0.1));
  CHECK(!is_monotone(Activation::kElu, -0.1) && is_monotone(Activation::kElu, 1.0));
  CHECK(!is_monotone(Activation::kSoftplus, -1.0) && is_monotone(Activation::kSoftplus, 1.0));
  CHECK(derives_from_output(Activation::kLeakyRelu, 0.0));
  CHECK(!derives_from_output(Activation::kLeakyRelu, -0.1));
  CHECK(!derives_from_output(Activation::kElu, 0.0) && derives_from_output(Activation::kElu, 1.0));
  CHECK(!derives_from_output(Activation::kSoftplus, -1.0));
  for (int a = 0; a < kActivations; ++a) {
    const Activation activation = static_cast<Activation>(a);
    CHECK_THAT(may_derive_from_output(activation) == derives_from_output(activation, 1.0),
               "derives_from_output(%s)", kNames[a]);
  }
}

template <class C>
void check_type() {
  check_grid<Activation::kIdentity>(C(0));
  check_grid<Activation::kRelu>(C(0));
  check_grid<Activation::kLeakyRelu>(C(0.01));
  check_grid<Activation::kLeakyRelu>(C(0));
  check_grid<Activation::kLeakyRelu>(C(-0.5));
  check_grid<Activation::kLeakyRelu>(C(1.5));
  check_grid<Activation::kRelu6>(C(0));
  check_grid<Activation::kElu>(C(1));
  check_grid<Activation::kElu>(C(0.3));
  check_grid<Activation::kElu>(C(-0.7));
  check_grid<Activation::kSilu>(C(0));
  check_grid<Activation::kGelu>(C(0));
  check_grid<Activation::kGeluTanh>(C(0));
  check_grid<Activation::kTanh>(C(0));
  check_grid<Activation::kSigmoid>(C(0));
  check_grid<Activation::kSoftplus>(C(1));
  check_grid<Activation::kSoftplus>(C(2.5));
  check_grid<Activation::kSoftplus>(C(0.5));
  check_grid<Activation::kHardswish>(C(0));
  check_all_edges<C>();
}

}  // namespace

void test_activation() {
  check_predicates();
  check_type<float>();
  check_type<double>();
}

}  // namespace CMF_ISA
}  // namespace cmf

// Compiled once per instruction set: the list of its tests, and its vector functions over arrays.
#include "tests/isa_tests.h"

#include "cpu/simd.h"
#include "cpu/vector_math.h"
#include "tests/ulp.h"

#define CMF_JOIN(a, b) a##b
#define CMF_LIST(prefix, isa) CMF_JOIN(prefix, isa)

namespace cmf {

const test::IsaTest* CMF_LIST(isa_tests_, CMF_ISA)();
const test::ArrayFunctions* CMF_LIST(array_functions_, CMF_ISA)();

const test::IsaTest* CMF_LIST(isa_tests_, CMF_ISA)() {
  static const test::IsaTest tests[] = {
      {"half", CMF_ISA::test_half},
      {"memory", CMF_ISA::test_memory},
      {"lanes", CMF_ISA::test_lanes},
      {"vector_math", CMF_ISA::test_vector_math},
      {"activation", CMF_ISA::test_activation},
      {nullptr, nullptr},
  };
  return tests;
}

namespace CMF_ISA {
namespace {

// count is a multiple of every vector's lanes.
#define CMF_OVER_ARRAY(function)                                    \
  void over_array_##function(const float* x, float* y, int count) { \
    for (int i = 0; i < count; i += kLanes<float>) {                \
      store<float>(y + i, CMF_ISA::function(load<float>(x + i)));   \
    }                                                               \
  }
CMF_OVER_ARRAY(exp)
CMF_OVER_ARRAY(expm1)
CMF_OVER_ARRAY(log)
CMF_OVER_ARRAY(log1p)
CMF_OVER_ARRAY(tanh)
CMF_OVER_ARRAY(erf)
CMF_OVER_ARRAY(sigmoid)
CMF_OVER_ARRAY(softplus)
#undef CMF_OVER_ARRAY

}  // namespace

const test::ArrayFunctions* array_functions() {
  // the order of test::kExactFunctions
  static const test::ArrayFunctions functions = {{
      over_array_exp,
      over_array_expm1,
      over_array_log,
      over_array_log1p,
      over_array_tanh,
      over_array_erf,
      over_array_sigmoid,
      over_array_softplus,
  }};
  return &functions;
}

}  // namespace CMF_ISA

const test::ArrayFunctions* CMF_LIST(array_functions_, CMF_ISA)() {
  return CMF_ISA::array_functions();
}

}  // namespace cmf

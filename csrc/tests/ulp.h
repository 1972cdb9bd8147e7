// Errors of float functions in units in the last place, against the C library's double functions
// (theirs is below 2^-28 of a float's unit). Shared by every instruction set: nothing inline.
#pragma once

#include <stdint.h>

namespace cmf {
namespace test {

constexpr int kMathFunctions = 8;

// y[i] = f(x[i]); count is a multiple of kArrayMultiple
typedef void (*ArrayFunction)(const float* x, float* y, int count);
constexpr int kArrayMultiple = 16;

struct ArrayFunctions {
  ArrayFunction of[kMathFunctions];
};

struct ExactFunction {
  const char* name;
  double (*exact)(double x);
  float specials[4][2];  // argument and value that C99's annex F prescribes, or follows from it
};

extern const ExactFunction kExactFunctions[kMathFunctions];

struct UlpReport {
  double worst;  // largest error in ulp
  float worst_at;
  int64_t wrong;   // NaN against number, or the wrong sign (zeros' too)
  float wrong_at;  // the first of them
};

// Adds what y, meant to be exact, contributes: n values.
void add_errors(const float* x, const double* exact, const float* y, int count, UlpReport* report);

// Every step-th of the 2^32 bit patterns in [first, last).
void measure(const ExactFunction& function, const ArrayFunction* candidates, int candidate_count,
             uint64_t first, uint64_t last, uint32_t step, UlpReport* reports);

// The larger of two.
void merge(const UlpReport& from, UlpReport* into);

}  // namespace test
}  // namespace cmf

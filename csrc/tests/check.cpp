#include "tests/check.h"

#include <stdarg.h>
#include <stdio.h>

namespace cmf {
namespace test {
namespace {

int64_t check_count = 0;
int64_t failure_count = 0;
char context[256] = "";

// How often each place has failed: the first few are shown.
struct Place {
  const char* file;
  int line;
  int failures;
};
constexpr int kPlaces = 256;
constexpr int kShown = 5;
Place places[kPlaces];

int failures_at(const char* file, int line) {
  for (Place& place : places) {
    if (!place.file) place = Place{file, line, 0};
    if (place.file == file && place.line == line) return ++place.failures;
  }
  return 1;
}

}  // namespace

int64_t checks() { return check_count; }

int64_t failures() { return failure_count; }

void count_check() { ++check_count; }

void fail(const char* file, int line, const char* format, ...) {
  ++failure_count;
  const int failures_here = failures_at(file, line);
  if (failures_here > kShown) return;
  printf("%s:%d: %s%s", file, line, context, *context ? ": " : "");
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf(failures_here == kShown ? " (more of these are not shown)\n" : "\n");
}

void set_context(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(context, sizeof context, format, arguments);
  va_end(arguments);
}

// splitmix64 (Steele, Lea, Flood 2014)
uint32_t next_random(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
}

float random_between(uint64_t* state, float low, float high) {
  return low + (high - low) * (static_cast<float>(next_random(state) >> 8) * 0x1p-24f);
}

}  // namespace test
}  // namespace cmf

// What the native tests are written with. Shared by files of every instruction set, so: nothing
// inline, no templates.
//
// A test is a plain function. It goes on after a failed CHECK; the program's exit status counts.
#pragma once

#include <stdint.h>

namespace cmf {

struct KernelTable;

namespace test {

// One that an instruction set's own headers are tested by, compiled with its flags.
struct IsaTest {
  const char* name;
  void (*run)();
};

// One of the kernels behind a table, compiled once for the baseline.
struct KernelTest {
  const char* name;
  void (*run)(const KernelTable& kernels);
};

void count_check();

// Prints the first few of each place.
void fail(const char* file, int line, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

// What the next failures are about, printed before them; "" for nothing.
void set_context(const char* format, ...) __attribute__((format(printf, 1, 2)));

int64_t checks();
int64_t failures();

// A repeatable sequence, the same on every platform.
uint32_t next_random(uint64_t* state);
float random_between(uint64_t* state, float low, float high);

}  // namespace test
}  // namespace cmf

#define CHECK(condition)                                                       \
  do {                                                                         \
    ::cmf::test::count_check();                                                \
    if (!(condition)) ::cmf::test::fail(__FILE__, __LINE__, "%s", #condition); \
  } while (0)

// CHECK_THAT(a == b, "a is %d, b is %d", a, b)
#define CHECK_THAT(condition, ...)                                        \
  do {                                                                    \
    ::cmf::test::count_check();                                           \
    if (!(condition)) ::cmf::test::fail(__FILE__, __LINE__, __VA_ARGS__); \
  } while (0)

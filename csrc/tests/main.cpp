// The native test program: every test on every instruction set that this CPU runs.
//
//   cmf_tests [text]    the tests whose name contains it
#include <stdio.h>
#include <string.h>

#include "cpu/isa.h"
#include "tests/check.h"

namespace cmf {

#define CMF_DECLARE(isa) const test::IsaTest* isa_tests_##isa();
CMF_DECLARE(baseline)
#if defined(CMF_HAVE_AVX2)
CMF_DECLARE(avx2)
#endif
#if defined(CMF_HAVE_AVX512)
CMF_DECLARE(avx512)
#endif

namespace test {

void test_act_pool2d(const KernelTable& kernels);
void test_few_channels(const KernelTable& kernels);
void test_depthwise(const KernelTable& kernels);
void test_conv_backward(const KernelTable& kernels);
void test_conv_transposed(const KernelTable& kernels);
void test_gan_loss(const KernelTable& kernels);
void test_implicit_gemm(const KernelTable& kernels);
void test_pointwise(const KernelTable& kernels);
void test_winograd(const KernelTable& kernels);

namespace {

const KernelTest kKernelTests[] = {
    {"act_pool2d", test_act_pool2d},       {"few_channels", test_few_channels},
    {"depthwise", test_depthwise},         {"conv_backward", test_conv_backward},
    {"gan_loss", test_gan_loss},           {"pointwise", test_pointwise},
    {"implicit_gemm", test_implicit_gemm}, {"transposed", test_conv_transposed},
    {"winograd", test_winograd},
};

const IsaTest* tests_of(const char* isa) {
#if defined(CMF_HAVE_AVX2)
  if (strcmp(isa, "avx2") == 0) return isa_tests_avx2();
#endif
#if defined(CMF_HAVE_AVX512)
  if (strcmp(isa, "avx512") == 0) return isa_tests_avx512();
#endif
  (void)isa;
  return isa_tests_baseline();
}

// Prints how one test went. One that checked nothing is a mistake, and counts as a failure.
class Progress {
 public:
  Progress(const char* isa, const char* name)
      : isa_(isa), name_(name), checks_(checks()), failures_(failures()) {
    set_context("%s", "");
  }
  ~Progress() {
    if (checks() == checks_) fail(__FILE__, __LINE__, "%s checks nothing", name_);
    printf("%-8s %-12s %9lld checks  %s\n", isa_, name_, static_cast<long long>(checks() - checks_),
           failures() == failures_ ? "ok" : "FAILED");
    fflush(stdout);
  }

 private:
  const char* isa_;
  const char* name_;
  int64_t checks_;
  int64_t failures_;
};

int run_all(const char* filter) {
  for (const IsaEntry* entry = isa_entries(); entry->name; ++entry) {
    if (const char* missing = missing_feature(*entry)) {
      printf("%-8s not run: this CPU lacks %s\n", entry->name, missing);
      continue;
    }
    // the rest of its table is avx512's
    const bool matrix_unit = strcmp(entry->name, "amx") == 0;
    for (const IsaTest* test = tests_of(entry->name); test->name && !matrix_unit; ++test) {
      if (!strstr(test->name, filter)) continue;
      const Progress progress(entry->name, test->name);
      test->run();
    }
    for (const KernelTest& test : kKernelTests) {
      if (!strstr(test.name, filter)) continue;
      if (matrix_unit && test.run != test_implicit_gemm) continue;
      const Progress progress(entry->name, test.name);
      test.run(entry->table());
    }
  }
  printf("%lld checks, %lld failed\n", static_cast<long long>(checks()),
         static_cast<long long>(failures()));
  return checks() > 0 && failures() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace test
}  // namespace cmf

int main(int argc, char** argv) { return cmf::test::run_all(argc > 1 ? argv[1] : ""); }

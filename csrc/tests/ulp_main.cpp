// Every vector function on all 2^32 float32 arguments, on every instruction set that this CPU runs.
//
//   cmf_ulp [step]    every step-th argument alone
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <thread>
#include <vector>

#include "cpu/isa.h"
#include "tests/ulp.h"

namespace cmf {

#define CMF_DECLARE(isa) const test::ArrayFunctions* array_functions_##isa();
CMF_DECLARE(baseline)
#if defined(CMF_HAVE_AVX2)
CMF_DECLARE(avx2)
#endif
#if defined(CMF_HAVE_AVX512)
CMF_DECLARE(avx512)
#endif

namespace test {
namespace {

constexpr double kLimit = 2.0;  // ulp: what csrc/cpu/vector_math.h promises

struct Isa {
  const char* name;
  const ArrayFunctions* functions;
};

std::vector<Isa> runnable() {
  std::vector<Isa> result;
  for (const IsaEntry* entry = isa_entries(); entry->name; ++entry) {
    if (missing_feature(*entry)) continue;
#if defined(CMF_HAVE_AVX2)
    if (strcmp(entry->name, "avx2") == 0) result.push_back({entry->name, array_functions_avx2()});
#endif
#if defined(CMF_HAVE_AVX512)
    if (strcmp(entry->name, "avx512") == 0) {
      result.push_back({entry->name, array_functions_avx512()});
    }
#endif
    if (strcmp(entry->name, "baseline") == 0) {
      result.push_back({entry->name, array_functions_baseline()});
    }
  }
  return result;
}

std::vector<UlpReport> measure_threaded(int index, const std::vector<Isa>& isas, uint32_t step) {
  std::vector<ArrayFunction> candidates;
  for (const Isa& isa : isas) candidates.push_back(isa.functions->of[index]);
  const unsigned threads =
      std::thread::hardware_concurrency() ? std::thread::hardware_concurrency() : 1;
  std::vector<std::vector<UlpReport>> partial(threads, std::vector<UlpReport>(isas.size()));
  std::vector<std::thread> pool;
  // a share of the arguments that starts on a multiple of step
  const uint64_t arguments = ((uint64_t{1} << 32) + step - 1) / step;
  for (unsigned t = 0; t < threads; ++t) {
    const uint64_t first = arguments * t / threads * step;
    const uint64_t next = arguments * (t + 1) / threads * step;
    const uint64_t last = next < (uint64_t{1} << 32) ? next : uint64_t{1} << 32;
    pool.emplace_back([&, t, first, last] {
      measure(kExactFunctions[index], candidates.data(), static_cast<int>(candidates.size()), first,
              last, step, partial[t].data());
    });
  }
  for (std::thread& thread : pool) thread.join();
  std::vector<UlpReport> result(isas.size());
  for (const auto& part : partial) {
    for (size_t i = 0; i < isas.size(); ++i) merge(part[i], &result[i]);
  }
  return result;
}

int run(uint32_t step) {
  const std::vector<Isa> isas = runnable();
  bool good = true;
  printf("largest error in ulp at an argument; arguments with a wrong NaN or sign\n");
  for (int index = 0; index < kMathFunctions; ++index) {
    const std::vector<UlpReport> reports = measure_threaded(index, isas, step);
    for (size_t i = 0; i < isas.size(); ++i) {
      const UlpReport& report = reports[i];
      printf("%-9s %-9s %6.3f at %-15.9g", kExactFunctions[index].name, isas[i].name, report.worst,
             static_cast<double>(report.worst_at));
      if (report.wrong) {
        printf(" %lld wrong, first at %.9g", static_cast<long long>(report.wrong),
               static_cast<double>(report.wrong_at));
      }
      printf("\n");
      good = good && report.worst <= kLimit && report.wrong == 0;
    }
    fflush(stdout);
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace test
}  // namespace cmf

int main(int argc, char** argv) {
  const long step = argc > 1 ? atol(argv[1]) : 1;
  if (step < 1) {
    fprintf(stderr, "step must be a positive integer, got %s\n", argv[1]);
    return 2;
  }
  return cmf::test::run(static_cast<uint32_t>(step));
}

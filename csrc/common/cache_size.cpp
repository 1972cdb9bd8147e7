#include "common/cache_size.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace cmf {
namespace {

int64_t ask() {
  int64_t bytes = 0;
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  // systems without an answer say 0 or -1; one that several cores share counts as one core's
  constexpr int64_t kUsual = INT64_C(1) << 20, kMost = INT64_C(1) << 22;
  if (bytes <= 0) return kUsual;
  return bytes < kMost ? bytes : kMost;
}

}  // namespace

int64_t second_cache_bytes() {
  static const int64_t bytes = ask();
  return bytes;
}

}  // namespace cmf

// Work in nearly equal parts, one a thread.
#pragma once

#include "common/dtype.h"
#include "cpu/integers.h"

namespace cmf {
namespace CMF_ISA {

struct Range {
  int64_t first;
  int64_t last;
};

// Nearly equal parts, the longer ones first. One division in all: inner loops ask for them.
class EvenParts {
 public:
  EvenParts(int64_t size, int64_t count)
      : size_(size), count_(count), least_(size / count), longer_(size % count) {}

  int64_t size() const { return size_; }
  int64_t count() const { return count_; }
  int64_t first(int64_t part) const { return part * least_ + least(part, longer_); }
  int64_t size(int64_t part) const { return least_ + (part < longer_ ? 1 : 0); }

 private:
  int64_t size_;
  int64_t count_;
  int64_t least_;
  int64_t longer_;
};

// Part `part` of `parts` nearly equal ones.
inline Range part_of(int64_t count, int part, int parts) {
  const EvenParts all(count, parts);
  return Range{all.first(part), all.first(part + 1)};
}

// Into how many of `parts` each of `units` is cut, so that every thread has work.
inline int64_t cuts_of(int64_t units, int64_t parts, int threads) {
  if (threads == 1 || units >= 4 * threads) return 1;
  return least(divide_up(4 * threads, units), parts);
}

// body(part's range of `count` units) on `parts` threads; false if one of them gave false.
template <class Body>
bool in_parallel(int64_t count, int parts, const Body& body) {
  bool success = true;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
#endif
  for (int part = 0; part < parts; ++part) {
    if (body(part_of(count, part, parts))) continue;
#if defined(_OPENMP)
#pragma omp atomic write
#endif
    success = false;
  }
  return success;
}

}  // namespace CMF_ISA
}  // namespace cmf

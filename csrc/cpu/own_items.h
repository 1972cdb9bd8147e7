// Items that every thread has a run of its own of, and that are handed on where a thread is late.
//
// From one call to the next the same items come to the same thread, whose caches may have what they
// read: handed out one by one they would come to any. A thread that has done its own takes others',
// the next in order: on a machine that is shared, cores run at unequal speeds.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/parts.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {

class OwnItems {
 public:
  // False where memory could not be had.
  bool prepare(int64_t count, int threads) {
    threads_ = threads;
    if (!runs_.allocate(threads)) return false;
    for (int i = 0; i < threads; ++i) {
      const Range range = part_of(count, i, threads);
      runs_.data[i].next = range.first;
      runs_.data[i].last = range.last;
    }
    return true;
  }

  // The calling thread's next item; -1 where none is left.
  int64_t take() {
#if defined(_OPENMP)
    const int own = omp_get_thread_num();
#else
    const int own = 0;
#endif
    for (int i = 0; i < threads_; ++i) {
      Run& run = runs_.data[(own + i) % threads_];
      // one that is done is only looked at: its line stays everybody's
      if (__atomic_load_n(&run.next, __ATOMIC_RELAXED) >= run.last) continue;
      const int64_t item = __atomic_fetch_add(&run.next, 1, __ATOMIC_RELAXED);
      if (item < run.last) return item;
    }
    return -1;
  }

 private:
  struct Run {
    int64_t next;
    int64_t last;
    int64_t line[6];  // its own
  };

  int threads_ = 0;
  Scratch<Run> runs_;
};

}  // namespace CMF_ISA
}  // namespace cmf

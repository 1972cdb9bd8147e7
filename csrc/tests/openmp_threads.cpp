// The entry points of GCC's OpenMP that the kernels use, over std::thread: ThreadSanitizer follows
// every fork, join and barrier here, which it can't inside libgomp. Linked into the test program
// of that sanitizer alone.
#include <pthread.h>
#include <stdio.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// The threads of one parallel region.
struct Team {
  // The next iteration of the team's loop number `i`; the loop that a thread is at may not have
  // been met by the others yet.
  std::atomic<long>& next(size_t i, long first) {
    const std::lock_guard<std::mutex> lock(mutex);
    while (loops.size() <= i) loops.emplace_back(first);
    return loops[i];
  }

  pthread_barrier_t barrier;
  std::mutex mutex;
  std::deque<std::atomic<long>> loops;  // schedule(dynamic)
};

// What a thread knows of the loop that it is in.
struct Loop {
  size_t count = 0;  // loops of the region before it
  std::atomic<long>* next = nullptr;
  long end = 0;
  long step = 1;
};

thread_local int thread_number = 0;
thread_local int thread_total = 1;
thread_local Team* team = nullptr;
thread_local Loop loop;

// How many parallel regions had more than one thread: a run without any has shown nothing.
struct Regions {
  std::atomic<long> count{0};
  ~Regions() { printf("%ld parallel regions on several threads\n", count.load()); }
};
Regions regions;

void run_member(void (*body)(void*), void* data, int number, int total, Team* members) {
  thread_number = number;
  thread_total = total;
  team = members;
  loop = Loop();
  body(data);
  thread_number = 0;
  thread_total = 1;
  team = nullptr;
}

bool take_iterations(long* first, long* last) {
  const long begin = loop.next->fetch_add(loop.step);
  if (begin >= loop.end) return false;
  *first = begin;
  *last = begin + loop.step < loop.end ? begin + loop.step : loop.end;
  return true;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int omp_get_thread_num() { return thread_number; }

__attribute__((visibility("default"))) int omp_get_num_threads() { return thread_total; }

__attribute__((visibility("default"))) void GOMP_barrier() {
  if (thread_total > 1) pthread_barrier_wait(&team->barrier);
}

// Loops of schedule(dynamic) that count upwards by 1, as all of ours do.
__attribute__((visibility("default"))) bool GOMP_loop_nonmonotonic_dynamic_start(
    long begin, long end, long, long chunk, long* first, long* last) {
  loop.next = &team->next(loop.count++, begin);
  loop.end = end;
  loop.step = chunk;
  return take_iterations(first, last);
}

__attribute__((visibility("default"))) bool GOMP_loop_nonmonotonic_dynamic_next(long* first,
                                                                                long* last) {
  return take_iterations(first, last);
}

__attribute__((visibility("default"))) void GOMP_loop_end() { GOMP_barrier(); }

__attribute__((visibility("default"))) void GOMP_loop_end_nowait() {}

__attribute__((visibility("default"))) void GOMP_parallel(void (*body)(void*), void* data,
                                                          unsigned threads, unsigned) {
  Team members;
  if (threads <= 1) {
    run_member(body, data, 0, 1, &members);
    return;
  }
  ++regions.count;
  pthread_barrier_init(&members.barrier, nullptr, threads);
  std::vector<std::thread> others;
  for (unsigned number = 1; number < threads; ++number) {
    others.emplace_back(run_member, body, data, int(number), int(threads), &members);
  }
  run_member(body, data, 0, int(threads), &members);
  for (std::thread& other : others) other.join();
  pthread_barrier_destroy(&members.barrier);
}

}  // extern "C"

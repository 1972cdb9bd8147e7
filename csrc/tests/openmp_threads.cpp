// The entry points of GCC's OpenMP that the kernels use, over std::thread: ThreadSanitizer follows
// every fork, join and barrier here, which it can't inside libgomp. Linked into the test program
// of that sanitizer alone.
#include <pthread.h>
#include <stdio.h>

#include <atomic>
#include <thread>
#include <vector>

namespace {

thread_local int thread_number = 0;
thread_local int thread_total = 1;
thread_local pthread_barrier_t* team_barrier = nullptr;

// How many parallel regions had more than one thread: a run without any has shown nothing.
struct Regions {
  std::atomic<long> count{0};
  ~Regions() { printf("%ld parallel regions on several threads\n", count.load()); }
};
Regions regions;

void run_member(void (*body)(void*), void* data, int number, int total,
                pthread_barrier_t* barrier) {
  thread_number = number;
  thread_total = total;
  team_barrier = barrier;
  body(data);
  thread_number = 0;
  thread_total = 1;
  team_barrier = nullptr;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int omp_get_thread_num() { return thread_number; }

__attribute__((visibility("default"))) int omp_get_num_threads() { return thread_total; }

__attribute__((visibility("default"))) void GOMP_barrier() {
  if (team_barrier) pthread_barrier_wait(team_barrier);
}

__attribute__((visibility("default"))) void GOMP_parallel(void (*body)(void*), void* data,
                                                          unsigned threads, unsigned) {
  if (threads <= 1) {
    run_member(body, data, 0, 1, nullptr);
    return;
  }
  ++regions.count;
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, threads);
  std::vector<std::thread> team;
  for (unsigned number = 1; number < threads; ++number) {
    team.emplace_back(run_member, body, data, int(number), int(threads), &barrier);
  }
  run_member(body, data, 0, int(threads), &barrier);
  for (std::thread& member : team) member.join();
  pthread_barrier_destroy(&barrier);
}

}  // extern "C"

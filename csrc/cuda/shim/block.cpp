#include "cuda/shim/block.h"

#include <string.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/shim/fiber.h"
#include "cuda/shim/thread.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cmf {
namespace shim {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kMostThreads = 1024;
constexpr int kBarriers = 16;
constexpr size_t kGuardBytes = 256;      // behind the shared memory
constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point type

class Machine {
 public:
  void run(const char* name, dim3 grid, dim3 block, size_t dynamic_bytes,
           const std::function<void()>& body) {
    const std::lock_guard<std::mutex> one_grid_at_a_time(mutex_);
    name_ = name;
    body_ = &body;
    gridDim = grid;
    blockDim = block;
    dynamic_bytes_ = dynamic_bytes;
    error_.clear();
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (threads < 1 || threads > kMostThreads || block.z > 64)
      throw_error("a block of " + text(block));
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 65535 ||
        grid.z > 65535) {
      throw_error("a grid of " + text(grid));
    }
    if (dynamic_bytes > kDynamicSharedBytes) {
      throw_error(std::to_string(dynamic_bytes) + " bytes of dynamic shared memory");
    }
    arena_.resize(kStaticSharedBytes + kDynamicSharedBytes + kGuardBytes + 128);
    base_ = arena_.data() + (128 - reinterpret_cast<uintptr_t>(arena_.data()) % 128) % 128;
    threads_.resize(threads);
    random_.seed(settings().seed);
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    std::vector<uint64_t> shuffled;
    if (settings().order == Order::kRandom) {
      for (uint64_t i = 0; i < blocks; ++i) shuffled.push_back(i);
      std::shuffle(shuffled.begin(), shuffled.end(), random_);
    }
    for (uint64_t i = 0; i < blocks; ++i) {
      uint64_t b = settings().order == Order::kReverse ? blocks - 1 - i : i;
      if (!shuffled.empty()) b = shuffled[i];
      blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                      static_cast<unsigned>(b / grid.x / grid.y));
      run_block();
    }
  }

  [[noreturn]] void fail(const char* what, Site site) {
    error_ = "thread " + text(running_->index) + " at " + where(site) + ": " + what;
    leave();
    __builtin_unreachable();  // nobody resumes it
  }

  void barrier(Site site, int id, unsigned count, unsigned value) {
    if (id < 0 || id >= kBarriers) fail("no such barrier", site);
    if (count % kWarpSize != 0) fail("a barrier's count must be a multiple of 32", site);
    running_->state = State::kBarrier;
    running_->site = site;
    running_->barrier = id;
    running_->count = count ? count : static_cast<unsigned>(threads_.size());
    running_->value = value;
    leave();
  }

  unsigned barrier_sum() const { return barrier_sum_; }

  void collective(unsigned mask, const char* name, const void* input, void* output, Combine combine,
                  Site site) {
    const size_t self = static_cast<size_t>(running_ - threads_.data());
    const size_t first = self / kWarpSize * kWarpSize;
    const size_t lanes = std::min<size_t>(kWarpSize, threads_.size() - first);
    if (!(mask >> (self - first) & 1)) fail("the mask leaves the calling lane out", site);
    running_->state = State::kWarp;
    running_->site = site;
    running_->mask = mask;
    running_->collective = name;
    running_->input = input;
    running_->output = output;
    const void* inputs[kWarpSize] = {};
    void* outputs[kWarpSize] = {};
    for (size_t lane = 0; lane < lanes; ++lane) {
      const Thread& other = threads_[first + lane];
      if (!(mask >> lane & 1)) continue;
      if (other.state != State::kWarp || other.mask != mask) {
        leave();  // until the last one comes
        return;
      }
      if (strcmp(other.collective, name) != 0 || !same(other.site, site)) {
        fail((std::string("lanes of one mask meet in different calls: ") + name + ", and " +
              other.collective + " at " + where(other.site))
                 .c_str(),
             site);
      }
      inputs[lane] = other.input;
      outputs[lane] = other.output;
    }
    combine(mask, inputs, outputs);
    running_->state = State::kReady;  // and goes on
    for (size_t lane = 0; lane < lanes; ++lane) {
      Thread* other = &threads_[first + lane];
      if ((mask >> lane & 1) && other != running_) make_ready(other);
    }
  }

  unsigned lane() const { return static_cast<unsigned>(running_ - threads_.data()) % kWarpSize; }

  void* static_shared(const void* key, size_t bytes, size_t alignment, Site site) {
    for (const Shared& known : shared_) {
      if (known.key == key) return base_ + known.offset;
    }
    const size_t offset = (static_bytes_ + alignment - 1) / alignment * alignment;
    if (offset + bytes > kStaticSharedBytes) fail("more than 48 KB of static shared memory", site);
    static_bytes_ = offset + bytes;
    shared_.push_back(Shared{key, offset});
    return base_ + offset;
  }

  void* dynamic_shared() { return base_ + kStaticSharedBytes; }

  bool is_shared(const void* at, size_t bytes) const {
    const unsigned char* p = static_cast<const unsigned char*>(at);
    const unsigned char* dynamic = base_ + kStaticSharedBytes;
    return (p >= base_ && p + bytes <= base_ + static_bytes_) ||
           (p >= dynamic && p + bytes <= dynamic + dynamic_bytes_);
  }

  Thread& running() { return *running_; }

 private:
  [[noreturn]] void throw_error(const std::string& what) {
    throw std::runtime_error(std::string("kernel ") + name_ + ": " + what);
  }

  void make_ready(Thread* thread) {
    thread->state = State::kReady;
    next_.push_back(thread);
  }

  void leave() { running_->fiber->leave(); }

  static void entry(void* machine) {
    Machine* self = static_cast<Machine*>(machine);
    (*self->body_)();
    Thread* thread = self->running_;
    for (const auto& group : thread->copies) std::for_each(group.begin(), group.end(), arrive);
    std::for_each(thread->open.begin(), thread->open.end(), arrive);
    thread->copies.clear();
    thread->open.clear();
    thread->state = State::kDone;
    self->leave();
  }

  Fiber* take_fiber() {
    if (idle_.empty()) {
      fibers_.push_back(std::unique_ptr<Fiber>(new Fiber(kStackBytes)));
      idle_.push_back(fibers_.back().get());
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  void resume(Thread* thread) {
    if (!thread->fiber) {
      thread->fiber = take_fiber();
      thread->fiber->begin(&entry, this);
    }
    running_ = thread;
    threadIdx = thread->index;
    thread->fiber->resume();
    if (thread->fiber->overflowed()) error_ = "a thread's stack of 128 KB is too small";
    if (!error_.empty()) {
      abandon();
      throw_error("block " + text(blockIdx) + ", " + error_);
    }
    if (thread->state == State::kDone) {
      idle_.push_back(thread->fiber);
      thread->fiber = nullptr;
    }
  }

  // After an error: the stacks can be used again, what lies on them has no destructors.
  void abandon() {
    idle_.clear();
    for (const auto& fiber : fibers_) idle_.push_back(fiber.get());
    for (Thread& thread : threads_) thread = Thread{};
  }

  void run_block() {
    shared_.clear();
    static_bytes_ = 0;
    const size_t arena = kStaticSharedBytes + dynamic_bytes_ + kGuardBytes;
    memset(base_, kPoison, arena);
    next_.clear();
    for (size_t i = 0; i < threads_.size(); ++i) {
      Thread& thread = threads_[i];
      thread.fiber = nullptr;
      const unsigned t = static_cast<unsigned>(i);
      thread.index = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
      make_ready(&thread);
    }
    std::vector<Thread*> round;
    while (!next_.empty()) {
      round.swap(next_);
      next_.clear();
      if (settings().order == Order::kRandom) {
        std::shuffle(round.begin(), round.end(), random_);
      } else {
        std::sort(round.begin(), round.end());
        if (settings().order == Order::kReverse) std::reverse(round.begin(), round.end());
      }
      for (Thread* thread : round) resume(thread);
      if (next_.empty()) release_barriers();
    }
    for (const Thread& thread : threads_) {
      if (thread.state != State::kDone) report_deadlock();
    }
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (base_[kStaticSharedBytes + dynamic_bytes_ + i] != kPoison) {
        throw_error("block " + text(blockIdx) + " wrote behind its dynamic shared memory");
      }
    }
  }

  void release_barriers() {
    for (int id = 0; id < kBarriers; ++id) {
      unsigned waiting = 0, sum = 0;
      const Thread* one = nullptr;
      for (const Thread& thread : threads_) {
        if (thread.state != State::kBarrier || thread.barrier != id) continue;
        // a named barrier may be reached from several places: producers' and consumers'
        if (one && (one->count != thread.count || (id == 0 && !same(one->site, thread.site)))) {
          report_deadlock();
        }
        one = &thread;
        ++waiting;
        sum += thread.value;
      }
      if (!one || waiting != one->count) continue;
      barrier_sum_ = sum;
      for (Thread& thread : threads_) {
        if (thread.state == State::kBarrier && thread.barrier == id) make_ready(&thread);
      }
      return;  // its sum is read before the next one's
    }
  }

  // Who waits where, runs of threads together.
  [[noreturn]] void report_deadlock() {
    std::string message = "block " + text(blockIdx) + ": threads wait for others that don't come:";
    size_t begin = 0;
    const auto describe = [](const Thread& thread) {
      switch (thread.state) {
        case State::kDone:
          return std::string("returned");
        case State::kBarrier:
          return "at the barrier of " + where(thread.site);
        case State::kWarp:
          return std::string("in ") + thread.collective + " of " + where(thread.site);
        case State::kReady:
          break;
      }
      return std::string("ready");
    };
    for (size_t i = 1; i <= threads_.size(); ++i) {
      if (i < threads_.size() && describe(threads_[i]) == describe(threads_[begin])) continue;
      message += " " + std::to_string(begin) + "-" + std::to_string(i - 1) + " " +
                 describe(threads_[begin]) + (i < threads_.size() ? "," : "");
      begin = i;
    }
    abandon();
    throw_error(message);
  }

  std::mutex mutex_;
  const char* name_ = "";
  const std::function<void()>* body_ = nullptr;
  std::string error_;
  std::vector<Thread> threads_;
  std::vector<Thread*> next_;  // who runs in the next round
  Thread* running_ = nullptr;
  std::vector<std::unique_ptr<Fiber> > fibers_;
  std::vector<Fiber*> idle_;
  std::mt19937_64 random_;
  std::vector<unsigned char> arena_;
  unsigned char* base_ = nullptr;
  std::vector<Shared> shared_;
  size_t static_bytes_ = 0;
  size_t dynamic_bytes_ = 0;
  unsigned barrier_sum_ = 0;
};

Machine& machine() {
  static Machine instance;
  return instance;
}

}  // namespace

Settings& settings() {
  static Settings instance;
  return instance;
}

void run_grid(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
              const std::function<void()>& thread) {
  machine().run(name, grid, block, dynamic_shared_bytes, thread);
}

void fail(const char* what, Site site) { machine().fail(what, site); }

void block_barrier(Site site, int id, unsigned count) { machine().barrier(site, id, count, 0); }

unsigned block_sum(unsigned value, Site site) {
  machine().barrier(site, 0, 0, value);
  return machine().barrier_sum();
}

void warp_collective(unsigned mask, const char* name, const void* input, void* output,
                     Combine combine, Site site) {
  machine().collective(mask, name, input, output, combine, site);
}

unsigned lane_index() { return machine().lane(); }

void* static_shared(const void* key, size_t bytes, size_t alignment, Site site) {
  return machine().static_shared(key, bytes, alignment, site);
}

void* dynamic_shared() { return machine().dynamic_shared(); }

bool is_shared(const void* at, size_t bytes) { return machine().is_shared(at, bytes); }

void async_copy(void* shared, const void* global, size_t bytes, size_t source_bytes, Site site) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async copies 4, 8 or 16 bytes", site);
  if (source_bytes > bytes) fail("cp.async reads more than it writes", site);
  if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes) {
    fail("cp.async of a misaligned address", site);
  }
  if (!is_shared(shared, bytes)) fail("cp.async writes outside shared memory", site);
  memset(shared, kPoison, bytes);
  machine().running().open.push_back(Copy{shared, global, bytes, source_bytes});
}

void async_commit() {
  Thread& thread = machine().running();
  thread.copies.push_back(std::move(thread.open));
  thread.open.clear();
}

void async_wait(unsigned groups_in_flight) {
  Thread& thread = machine().running();
  while (thread.copies.size() > groups_in_flight) {
    std::for_each(thread.copies.front().begin(), thread.copies.front().end(), arrive);
    thread.copies.erase(thread.copies.begin());
  }
}

}  // namespace shim
}  // namespace cmf

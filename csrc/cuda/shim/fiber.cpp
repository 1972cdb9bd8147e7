#include "cuda/shim/fiber.h"

#include <stdint.h>
#include <stdlib.h>

#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cmf {
namespace shim {
namespace {

constexpr uint64_t kCanary = 0x5ca1ab1e0ddba11ull;

#if defined(__x86_64__)

// Saves what a call must preserve, swaps stacks, restores. ucontext would ask the kernel for the
// signal mask each time, a hundred times slower.
__attribute__((naked, noinline)) void switch_stack(void**, void*) {
  asm volatile(
      "pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret\n\t");
}

// The first frame of a fiber: the entry and its argument lie in registers that switch_stack
// restores.
__attribute__((naked, noinline)) void first_frame() {
  asm volatile(
      "movq %r12, %rdi\n\t"
      "callq *%r13\n\t"
      "ud2\n\t");
}

#else

struct Contexts {
  ucontext_t inside;
  ucontext_t outside;
};

void call_entry(unsigned entry_high, unsigned entry_low, unsigned high, unsigned low) {
  const auto join = [](unsigned upper, unsigned lower) {
    return static_cast<uintptr_t>((static_cast<uint64_t>(upper) << 32) | lower);
  };
  reinterpret_cast<void (*)(void*)>(join(entry_high, entry_low))(
      reinterpret_cast<void*>(join(high, low)));
}

#endif

}  // namespace

Fiber::Fiber(size_t stack_bytes)
    : stack_(static_cast<char*>(aligned_alloc(64, stack_bytes))),
      bytes_(stack_bytes),
      inside_(nullptr),
      outside_(nullptr) {
  if (!stack_) throw std::bad_alloc();
  *reinterpret_cast<uint64_t*>(stack_) = kCanary;
#if !defined(__x86_64__)
  inside_ = new Contexts;
#endif
}

Fiber::~Fiber() {
#if !defined(__x86_64__)
  delete static_cast<Contexts*>(inside_);
#endif
  free(stack_);
}

void Fiber::begin(void (*entry)(void*), void* argument) {
#if defined(__x86_64__)
  // as switch_stack leaves it: six registers and where to return to; a call finds the stack at 16n
  void** top = reinterpret_cast<void**>(stack_ + bytes_ - 16);
  *--top = reinterpret_cast<void*>(&first_frame);
  *--top = nullptr;                         // rbp
  *--top = nullptr;                         // rbx
  *--top = argument;                        // r12
  *--top = reinterpret_cast<void*>(entry);  // r13
  *--top = nullptr;                         // r14
  *--top = nullptr;                         // r15
  inside_ = top;
#else
  ucontext_t& context = static_cast<Contexts*>(inside_)->inside;
  getcontext(&context);
  context.uc_stack.ss_sp = stack_ + 64;
  context.uc_stack.ss_size = bytes_ - 64;
  context.uc_link = nullptr;
  const uint64_t e = reinterpret_cast<uintptr_t>(entry);
  const uint64_t a = reinterpret_cast<uintptr_t>(argument);
  makecontext(&context, reinterpret_cast<void (*)()>(&call_entry), 4, unsigned(e >> 32),
              unsigned(e), unsigned(a >> 32), unsigned(a));
#endif
}

void Fiber::resume() {
#if defined(__x86_64__)
  switch_stack(&outside_, inside_);
#else
  Contexts* contexts = static_cast<Contexts*>(inside_);
  swapcontext(&contexts->outside, &contexts->inside);
#endif
}

void Fiber::leave() {
#if defined(__x86_64__)
  switch_stack(&inside_, outside_);
#else
  Contexts* contexts = static_cast<Contexts*>(inside_);
  swapcontext(&contexts->inside, &contexts->outside);
#endif
}

bool Fiber::overflowed() const { return *reinterpret_cast<const uint64_t*>(stack_) != kCanary; }

}  // namespace shim
}  // namespace cmf

// Fibers: a call that can be left in the middle and taken up again, on a stack of its own.
#pragma once

#include <stddef.h>

namespace cmf {
namespace shim {

class Fiber {
 public:
  explicit Fiber(size_t stack_bytes);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next resume() call entry(argument), whatever the fiber was in the middle of.
  // `entry` must end in leave() and never return.
  void begin(void (*entry)(void*), void* argument);
  // Runs the fiber from where it stopped until it calls leave().
  void resume();
  // Called on the fiber: back to whoever resumed it.
  void leave();
  // Whether the stack has been used up to its end.
  bool overflowed() const;

 private:
  char* stack_;
  size_t bytes_;
  void* inside_;   // where the fiber goes on
  void* outside_;  // where its caller goes on
};

}  // namespace shim
}  // namespace cmf

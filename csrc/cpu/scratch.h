// Scratch memory of one thread and call, on a cache line's boundary.
#pragma once

#include <stdlib.h>

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

template <class T>
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // False where memory could not be had.
  bool allocate(int64_t count) {
    constexpr size_t kLine = 64;
    memory_ = malloc(static_cast<size_t>(count) * sizeof(T) + kLine);
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_);
    data = reinterpret_cast<T*>((address + kLine - 1) / kLine * kLine);
    return memory_ != nullptr;
  }

  T* data = nullptr;

 private:
  void* memory_ = nullptr;
};

}  // namespace CMF_ISA
}  // namespace cmf

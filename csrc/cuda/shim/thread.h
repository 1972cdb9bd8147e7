// What the emulator keeps of one thread of the running block.
#pragma once

#include <string.h>

#include <string>
#include <vector>

#include "cuda/shim/block.h"
#include "cuda/shim/fiber.h"

namespace cmf {
namespace shim {

enum class State { kReady, kBarrier, kWarp, kDone };

struct Copy {
  void* target;
  const void* source;
  size_t bytes;
  size_t source_bytes;
};

struct Thread {
  State state;
  dim3 index;
  Fiber* fiber;  // null before the first run, and after the last
  Site site;     // where it waits
  // kBarrier
  int barrier;
  unsigned count;
  unsigned value;
  // kWarp
  unsigned mask;
  const char* collective;
  const void* input;
  void* output;
  std::vector<std::vector<Copy> > copies;  // committed groups, oldest first
  std::vector<Copy> open;                  // issued since
};

struct Shared {
  const void* key;
  size_t offset;
};

inline std::string where(Site site) {
  const char* name = strrchr(site.file, '/');
  return std::string(name ? name + 1 : site.file) + ":" + std::to_string(site.line);
}

inline bool same(Site a, Site b) { return a.line == b.line && strcmp(a.file, b.file) == 0; }

inline std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

inline void arrive(const Copy& copy) {
  memcpy(copy.target, copy.source, copy.source_bytes);
  memset(static_cast<char*>(copy.target) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace shim
}  // namespace cmf

#include "cpu/isa.h"

#include <stdlib.h>
#include <string.h>

#include <stdexcept>
#include <string>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define CMF_X86 1
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cmf {

#define CMF_DECLARE_TABLE(isa) const KernelTable& kernel_table_##isa();
CMF_DECLARE_TABLE(baseline)
#if defined(CMF_HAVE_AVX2)
CMF_DECLARE_TABLE(avx2)
#endif
#if defined(CMF_HAVE_AVX512)
CMF_DECLARE_TABLE(avx512)
#endif
#if defined(CMF_HAVE_AMX)
CMF_DECLARE_TABLE(amx)
#endif

namespace {

#if defined(CMF_X86)
enum Register { kEax, kEbx, kEcx, kEdx };

struct Feature {
  const char* name;
  unsigned leaf;
  Register reg;
  int bit;
  unsigned xcr0;  // the register state that the operating system must save
  unsigned subleaf = 0;
};

constexpr unsigned kYmm = 0x06;  // XMM and YMM
constexpr unsigned kZmm = 0xe6;  // and the mask registers, ZMM0-15 upper halves, ZMM16-31

constexpr unsigned kTiles = 0x60000;  // their configuration and data

constexpr Feature kFeatures[] = {
    {"fma", 1, kEcx, 12, kYmm},          {"f16c", 1, kEcx, 29, kYmm},
    {"avx", 1, kEcx, 28, kYmm},          {"avx2", 7, kEbx, 5, kYmm},
    {"avx512f", 7, kEbx, 16, kZmm},      {"avx512dq", 7, kEbx, 17, kZmm},
    {"avx512bw", 7, kEbx, 30, kZmm},     {"avx512vl", 7, kEbx, 31, kZmm},
    {"avx512bf16", 7, kEax, 5, kZmm, 1}, {"amx-tile", 7, kEdx, 24, kTiles},
    {"amx-bf16", 7, kEdx, 22, kTiles},
};

unsigned saved_register_state() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0;  // OSXSAVE
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux gives a process tiles only when it asks for them, for all its threads.
bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

bool has(const Feature& feature) {
  unsigned regs[4];
  if (!__get_cpuid_count(feature.leaf, feature.subleaf, &regs[0], &regs[1], &regs[2], &regs[3]))
    return false;
  if (!(regs[feature.reg] & (1u << feature.bit))) return false;
  if ((saved_register_state() & feature.xcr0) != feature.xcr0) return false;
  return feature.xcr0 != kTiles || may_use_tiles();
}

constexpr int kFeatureCount = sizeof kFeatures / sizeof kFeatures[0];
#endif

// The build passes the very list that its compiler flags were made from (CMakeLists.txt), so that
// the gate can't fall behind the flags: -mavx2 is feature "avx2".
const char* const kBaselineFeatures[] = {nullptr};
#if defined(CMF_HAVE_AVX2)
const char* const kAvx2Features[] = {CMF_AVX2_FEATURES, nullptr};
#endif
#if defined(CMF_HAVE_AVX512)
const char* const kAvx512Features[] = {CMF_AVX512_FEATURES, nullptr};
#endif
#if defined(CMF_HAVE_AMX)
const char* const kAmxFeatures[] = {CMF_AMX_FEATURES, nullptr};
#endif

const IsaEntry kEntries[] = {
    {"baseline", kBaselineFeatures, kernel_table_baseline},
#if defined(CMF_HAVE_AVX2)
    {"avx2", kAvx2Features, kernel_table_avx2},
#endif
#if defined(CMF_HAVE_AVX512)
    {"avx512", kAvx512Features, kernel_table_avx512},
#endif
#if defined(CMF_HAVE_AMX)
    {"amx", kAmxFeatures, kernel_table_amx},
#endif
    {nullptr, nullptr, nullptr},
};

}  // namespace

const IsaEntry* isa_entries() { return kEntries; }

const char* const* known_features() {
#if defined(CMF_X86)
  static const char* names[kFeatureCount + 1];
  for (int i = 0; i < kFeatureCount; ++i) names[i] = kFeatures[i].name;
  return names;
#else
  static const char* const names[] = {nullptr};
  return names;
#endif
}

bool cpu_has(const char* name) {
#if defined(CMF_X86)
  for (const Feature& feature : kFeatures) {
    if (strcmp(feature.name, name) == 0) return has(feature);
  }
#endif
  (void)name;
  return false;
}

const char* missing_feature(const IsaEntry& entry) {
  for (const char* const* feature = entry.features; *feature; ++feature) {
    if (!cpu_has(*feature)) return *feature;
  }
  return nullptr;
}

const KernelTable& select_kernel_table() {
  const char* forced = getenv("CROSSMEDIA_FAST_ISA");
  const IsaEntry* best = nullptr;
  std::string names;
  for (const IsaEntry* entry = isa_entries(); entry->name; ++entry) {
    names += names.empty() ? entry->name : std::string(", ") + entry->name;
    const char* missing = missing_feature(*entry);
    if (forced && *forced) {
      if (strcmp(forced, entry->name) != 0) continue;
      if (missing) {
        throw std::runtime_error(std::string("CROSSMEDIA_FAST_ISA=") + forced +
                                 ", but this CPU or its operating system lacks " + missing);
      }
      best = entry;
    } else if (!missing) {
      best = entry;
    }
  }
  if (!best) {
    throw std::runtime_error(std::string("CROSSMEDIA_FAST_ISA must be one of ") + names + ", got " +
                             forced);
  }
  return best->table();
}

}  // namespace cmf

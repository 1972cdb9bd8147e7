// Which instruction sets this build has, which this CPU can run, and the one in use.
#pragma once

#include "cpu/kernel_table.h"

namespace cmf {

struct IsaEntry {
  const char* name;
  const char* const* features;  // every feature its files were compiled with; null at the end
  const KernelTable& (*table)();
};

// Narrowest first; a null name ends the list.
const IsaEntry* isa_entries();

// The first feature of `entry` that this CPU (or its operating system) lacks, or null.
const char* missing_feature(const IsaEntry& entry);

bool cpu_has(const char* feature);

// The names that cpu_has knows; null at the end.
const char* const* known_features();

// The widest table that runs here, or the one that CROSSMEDIA_FAST_ISA names.
// Throws std::runtime_error saying what is missing.
const KernelTable& select_kernel_table();

}  // namespace cmf

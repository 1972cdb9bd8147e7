#pragma once

#include <stdint.h>

namespace cmf {

// Asks the system to back memory that nobody has touched yet by huge pages, where it has them: the
// first touch of 400 MB is then 200 page faults, not 100,000. False where it can't.
bool advise_huge_pages(void* data, int64_t bytes);

}  // namespace cmf

// Small kernels, right and wrong, by which the tests of the emulator see that it tells them apart.
#pragma once

namespace cmf {
namespace shim {

// Runs the example of that name on `values` [count] in place. Throws std::invalid_argument where
// there is none.
void run_example(const char* name, float* values, int count);

}  // namespace shim
}  // namespace cmf

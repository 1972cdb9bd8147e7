// The Python module: names and plain numbers, no logic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bind.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace cmf {

const KernelTable& kernels() {
  static const KernelTable& table = select_kernel_table();
  return table;
}

void check_threads(int threads) {
  if (threads < 1 || threads > kMostThreads) {
    throw py::value_error("threads must be between 1 and " + std::to_string(kMostThreads) +
                          ", got " + std::to_string(threads));
  }
}

void* checked_pointer(const char* name, uintptr_t address, int alignment, bool needed) {
  if (address == 0 && needed) {
    throw py::value_error(std::string(name) + " must be an address for this problem, got 0");
  }
  if (address % static_cast<uintptr_t>(alignment) != 0) {
    throw py::value_error(std::string(name) + " must be aligned to " + std::to_string(alignment) +
                          " bytes");
  }
  return reinterpret_cast<void*>(address);
}

}  // namespace cmf

PYBIND11_MODULE(_native, module) {
  module.doc() = "crossmedia_fast's compiled kernels; called by the package alone.";

  cmf::kernels();  // an ISA that can't run is an import error with its reason

  module.def("isa", [] { return std::string(cmf::kernels().isa); });
  module.def("vector_bytes", [] { return cmf::kernels().vector_bytes; });
  module.def("isas", [] {
    // every ISA of this build: name, features, and the first one missing here ("" = runs)
    std::vector<std::tuple<std::string, std::vector<std::string>, std::string>> rows;
    for (const cmf::IsaEntry* entry = cmf::isa_entries(); entry->name; ++entry) {
      std::vector<std::string> features;
      for (const char* const* name = entry->features; *name; ++name) features.push_back(*name);
      const char* missing = cmf::missing_feature(*entry);
      rows.emplace_back(entry->name, features, missing ? missing : "");
    }
    return rows;
  });
  module.def("cpu_features", [] {
    std::vector<std::string> present;
    for (const char* const* name = cmf::known_features(); *name; ++name) {
      if (cmf::cpu_has(*name)) present.push_back(*name);
    }
    return present;
  });
  module.attr("compiler") = __VERSION__;
  module.attr("version") = CMF_VERSION;
#if defined(CMF_OPENMP)
  module.attr("openmp") = true;
#else
  module.attr("openmp") = false;
#endif

  cmf::bind_act_pool2d(module);
  cmf::bind_conv2d_small(module);
  cmf::bind_conv_act_pool2d(module);
  cmf::bind_gan_loss(module);
}

// The Python module: names and plain numbers, no logic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <stdlib.h>

#include <string>
#include <vector>

#include "bindings/bind.h"
#include "bindings/bind_cuda.h"
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

// glibc gives freed memory back to the system above a mark that is twice the largest block freed so
// far, 128 KiB at first: a network whose feature maps are small takes thousands of page faults a
// call (SqueezeNet of 4x3x224x224: 4,900, a quarter of its time). Freeing one block that was never
// touched sets the mark to 64 MiB at no cost. Who sets a MALLOC_ variable of glibc's keeps it.
void keep_freed_memory() {
#if defined(__GLIBC__)
  constexpr size_t kLargest = (size_t{32} << 20) - 8192;  // that moves the mark
  void* volatile block = malloc(kLargest);                // volatile: or the compiler drops both
  free(block);
#endif
}

}  // namespace cmf

PYBIND11_MODULE(_native, module) {
  module.doc() = "crossmedia_fast's compiled kernels; called by the package alone.";

  cmf::kernels();  // an ISA that can't run is an import error with its reason
  cmf::keep_freed_memory();

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

#if defined(CMF_CUDA_BUILT)
  module.attr("why_no_cuda") = "";
  py::module_ cuda = module.def_submodule("cuda", "The CUDA kernels.");
  cmf::bind_cuda(cuda);
#else
  module.attr("why_no_cuda") = CMF_CUDA_REASON;
#endif

  cmf::bind_act_pool2d(module);
  cmf::bind_batch_norm_act(module);
  cmf::bind_conv2d_small(module);
  cmf::bind_conv_act_pool2d(module);
  cmf::bind_conv_transposed2d(module);
  cmf::bind_gan_loss(module);
  cmf::bind_linear(module);
  cmf::bind_state_guard(module);
}

#include "bindings/bind_cuda.h"

#include "cuda/device.h"

namespace cmf {

void bind_cuda(pybind11::module_& module) {
  module.def("driver_version", &CMF_ISA::driver_version);
  module.def("runtime_version", &CMF_ISA::runtime_version);
}

}  // namespace cmf

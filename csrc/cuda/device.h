// The device that kernels are launched on. Knows no type of CUDA's, so that any compiler can read
// it.
#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

// Makes a device the current one for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

// 0 where there is no driver; else as CUDA writes it: 12040 is 12.4.
int driver_version();
int runtime_version();

}  // namespace CMF_ISA
}  // namespace cmf

#include "cuda/device.h"
#include "cuda/launch.h"

namespace cmf {
namespace CMF_ISA {
namespace {

std::string text(dim3 d) {
  return std::to_string(d.x) + "×" + std::to_string(d.y) + "×" + std::to_string(d.z);
}

}  // namespace

#if defined(CMF_CUDA_SHIM)

DeviceGuard::DeviceGuard(int) : before_(-1) {}
DeviceGuard::~DeviceGuard() {}
int driver_version() { return 0; }
int runtime_version() { return 0; }
static int current_device() { return -1; }

#else

static void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw LaunchError(std::string(call) + ": " + cudaGetErrorString(error));
}

DeviceGuard::DeviceGuard(int device) : before_(-1) {
  int current = 0;
  check(cudaGetDevice(&current), "cudaGetDevice");
  if (current == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  before_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

static int current_device() {
  int device = -1;
  cudaGetDevice(&device);
  return device;
}

#endif

void throw_launch_error(const char* kernel, const Grid& grid, const char* reason) {
  throw LaunchError(std::string("kernel ") + kernel + " could not be launched on device " +
                    std::to_string(current_device()) + " (" + text(grid.blocks) + " blocks of " +
                    text(grid.threads) + " threads, " + std::to_string(grid.dynamic_shared_bytes) +
                    " bytes of shared memory): " + reason);
}

}  // namespace CMF_ISA
}  // namespace cmf

// What the launchers ask about devices.
#include <vector>

#include "runtime.h"

namespace cips3d {
namespace {

#if defined(__CUDACC__)
__global__ void nothing_kernel() {}

DeviceLimits ask_for_limits(int device) {
  int multiprocessors = 0, block = 0, multiprocessor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaFuncAttributes code = {};
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&code, nothing_kernel);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  const size_t of_code = shared_of_architecture(code.ptxVersion), of_device = block;
#if defined(CIPS3D_SM_90A)  // the build compiles for it instead of sm_90
  const bool warpgroups = code.ptxVersion == 90 && code.binaryVersion == 90;
#else
  const bool warpgroups = false;
#endif
  return {multiprocessors, of_device < of_code ? of_device : of_code, static_cast<size_t>(multiprocessor), warpgroups};
}
#endif

}  // namespace

DeviceLimits device_limits() {
#if defined(__CUDACC__)
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  thread_local std::vector<DeviceLimits> known;  // by device: asking takes as long as a launch
  if (known.size() <= static_cast<size_t>(device)) known.resize(device + 1);
  if (known[device].multiprocessors == 0) known[device] = ask_for_limits(device);
  return known[device];
#else
  const size_t limit = emulation::shared_limit();
  return {2, limit, limit + kSharedOverhead, limit == shared_of_architecture(90)};
#endif
}

}  // namespace cips3d

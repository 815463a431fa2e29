// What the launchers ask about devices.
#include <atomic>
#include <cstdlib>
#include <vector>

#include "ops.h"
#include "warpgroup.h"

namespace cips3d {
namespace {

#if defined(__CUDACC__)
// Never launched, only asked about: code that has warpgroups' instructions has that much shared memory here, whoever
// compiled it for the device, the build or, from PTX, the driver. It is more than what every block has to leave to the
// driver from 9.0 on, which may count as the kernel's.
constexpr size_t kMarkBytes = 4 * kSharedOverhead;
__global__ void code_kernel() {
#if CIPS3D_HAS_WGMMA
  __shared__ volatile unsigned char mark[kMarkBytes];
  mark[threadIdx.x] = 0;
#endif
}

DeviceLimits ask_for_limits(int device) {
  int multiprocessors = 0, block = 0, multiprocessor = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check(cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(cudaDeviceGetAttribute(&multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  cudaFuncAttributes code = {};
  check(cudaFuncGetAttributes(&code, code_kernel));
  const size_t of_code = shared_of_architecture(code.ptxVersion), of_device = block;
  return {multiprocessors, of_device < of_code ? of_device : of_code, static_cast<size_t>(multiprocessor),
          code.sharedSizeBytes >= kMarkBytes};
}
#endif

std::atomic<int> pretended_multiprocessors{0};  // 0: none are
std::atomic<int64_t> pretended_shared{0};

DeviceLimits limits_as_they_are() {
#if defined(__CUDACC__)
  int device = 0;
  check(cudaGetDevice(&device));
  thread_local std::vector<DeviceLimits> known;  // by device: asking takes as long as a launch
  if (known.size() <= static_cast<size_t>(device)) known.resize(device + 1);
  if (known[device].multiprocessors == 0) known[device] = ask_for_limits(device);
  return known[device];
#else
  const size_t limit = emulation::shared_limit();
#if defined(CIPS3D_PTX)
  const bool warpgroups = ptx::has_warpgroups();
#else
  constexpr bool warpgroups = true;
#endif
  return {2, limit, limit + kSharedOverhead, warpgroups && limit == shared_of_architecture(90)};
#endif
}

}  // namespace

DeviceLimits device_limits() {
  DeviceLimits limits = limits_as_they_are();
  if (const int count = pretended_multiprocessors.load(); count > 0) limits.multiprocessors = count;
  if (const size_t bytes = pretended_shared.load(); bytes > 0 && bytes < limits.shared_block) {
    limits.shared_block = bytes, limits.shared_multiprocessor = bytes + kSharedOverhead;
    limits.warpgroups = false;
  }
  return limits;
}

bool uses_warpgroups(const char* op) {
  const char* asked = std::getenv("CIPS3D_WGMMA");
  const std::string allowed = asked == nullptr ? "1" : asked;
  const bool is_allowed =
      allowed == "1" || ("," + allowed + ",").find(std::string(",") + op + ",") != std::string::npos;
  return is_allowed && device_limits().warpgroups;
}

bool uses_clusters() { return uses_warpgroups("clusters") && device_limits().multiprocessors > 1; }

void pretend_multiprocessors(int count) { pretended_multiprocessors = count; }

void pretend_shared_memory(int64_t bytes) { pretended_shared = bytes; }

int multiprocessors() { return device_limits().multiprocessors; }

int64_t shared_memory() { return static_cast<int64_t>(device_limits().shared_block); }

}  // namespace cips3d

// What every kernel file includes: the CUDA language and a few additions to it, under nvcc and in the emulation alike.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulation/cuda.h"
#if defined(CIPS3D_PTX)
#include "ptx/launch.h"
#endif
#endif

namespace cips3d {

using half = __half;
using bfloat16 = __nv_bfloat16;

#if defined(__CUDACC__)
// Whether an error is of something that a kernel did: every call of the runtime returns it from then on, whosever the
// kernel was.
inline bool of_earlier_work(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable: return true;
    default: return false;
  }
}

// Throws what a call of the runtime returned. The runtime keeps it, too, for the next cudaGetLastError(), which is to
// tell of the launch before it and of nothing else.
inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  const char* earlier = ", in work that the device was given before (CUDA_LAUNCH_BLOCKING=1 shows in which)";
  throw std::runtime_error(std::string(cudaGetErrorString(error)) + (of_earlier_work(error) ? earlier : ""));
}
#endif

constexpr unsigned kSharedAlignment = 16;  // bytes; what cp.async and ldmatrix need

// Bytes that SharedArrays::take<T>(count) uses; the host sizes a launch with it.
template <class T>
__host__ __device__ constexpr size_t shared_bytes(size_t count) {
  return (count * sizeof(T) + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

// Arrays carved out of dynamic shared memory, in the same order by every thread; a copy takes the same ones once more.
// Under nvcc an offset that moves on; in the emulation every array has red zones of its own.
class SharedArrays {
 public:
#if defined(__CUDACC__)
  __device__ __forceinline__ SharedArrays() {}  // CUDA 11 takes what has none for unused in templates
  template <class T>
  __device__ __forceinline__ T* take(size_t count) {
    extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
    T* array = reinterpret_cast<T*>(dynamic_shared_memory + taken_);
    taken_ += static_cast<unsigned>(shared_bytes<T>(count));
    return array;
  }
  // Leaves out what others take, `copies` times what `take(arrays)` would, so many bytes each time. The compiler
  // computes addresses of what is taken from here on anew, rather than keep them in registers.
  template <class Take>
  __device__ __forceinline__ void skip(int copies, int bytes, Take) {
    taken_ += copies * bytes;
    asm volatile("" : "+r"(taken_));
  }
#else
  template <class T>
  T* take(size_t count) {
    return reinterpret_cast<T*>(emulation::shared_array(count * sizeof(T), taken_++));
  }
  template <class Take>
  void skip(int copies, int, Take take) {
    for (int i = 0; i < copies; i++) take(*this);
  }
#endif

 private:
  unsigned taken_ = 0;
};

constexpr size_t kSharedOverhead = 1024;  // bytes of shared memory that every block takes besides its own

// Bytes of shared memory that a block may have on an architecture of version 10 * major + minor.
__host__ __device__ constexpr size_t shared_of_architecture(int version) {
  const bool small = version == 86 || version == 89 || version / 10 == 12;
  return size_t(small ? 99 : version < 90 ? 163 : 227) * 1024;
}

// Of the one that code is compiled for. Kernels that take more are left empty there: it saves most of their compile
// time. device_limits() keeps them from being launched where code for such a one runs on a device that has more.
#if defined(__CUDA_ARCH__)
constexpr size_t kSharedOfCode = shared_of_architecture(__CUDA_ARCH__ / 10);
#else
constexpr size_t kSharedOfCode = shared_of_architecture(90);
#endif

// What a launcher needs to cut its work.
struct DeviceLimits {
  int multiprocessors;
  size_t shared_block, shared_multiprocessor;  // bytes of shared memory
  bool warpgroups;                             // whether it runs code for sm_90a (warpgroup.h)
};

// Of the current device and the code that it runs; the emulation is a small GPU with the shared memory of compute
// capability 9.0 (device_limits.cu).
DeviceLimits device_limits();

// Whether an op's kernel for sm_90a is to be launched: the environment may refuse all (CIPS3D_WGMMA=0) or all but some
// ("render_rays,..."), to compare, or to look for a mistake.
bool uses_warpgroups(const char* op);
// Whether their blocks are to share what they read, as clusters of two. "clusters" allows it where it allows some.
bool uses_clusters();

// launch_clusters(kernel<A, B>, blocks of a cluster, grid, block, shared bytes, stream, arguments...):
// `kernel<<<...>>>` that checks itself and that a C++ compiler can read; for 9.0 and newer, unless clusters have one
// block. Throws std::runtime_error where the launch was refused.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int cluster, dim3 grid, dim3 block, size_t shared,
                     cudaStream_t stream, Arguments... arguments) {
#if defined(__CUDACC__)
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (shared > kAlwaysAllowed) {  // always the same limit: a graph may hold launches that took more than this one
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(device_limits().shared_block)));
    // Of what shared memory and the first cache divide between them: the driver might leave room for one block where
    // two were planned.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  }
  if (cluster == 1) {
    kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
    return check(cudaGetLastError());
  }
  cudaLaunchAttribute blocks_of_cluster = {};
  blocks_of_cluster.id = cudaLaunchAttributeClusterDimension;
  blocks_of_cluster.val.clusterDim.x = cluster;
  blocks_of_cluster.val.clusterDim.y = blocks_of_cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = grid, configuration.blockDim = block;
  configuration.dynamicSmemBytes = shared, configuration.stream = stream;
  configuration.attrs = &blocks_of_cluster, configuration.numAttrs = 1;
  check(cudaLaunchKernelEx(&configuration, kernel, static_cast<Parameters>(arguments)...));
#elif defined(CIPS3D_PTX)  // what nvcc made of the kernel, run by tests/ptx
  (void)stream;
  ptx::launch(reinterpret_cast<const void*>(kernel), cluster, grid, block, shared,
              ptx::packed(static_cast<Parameters>(arguments)...));
#else
  (void)stream;
  emulation::run_grid(grid, block, cluster, shared, [=] { kernel(static_cast<Parameters>(arguments)...); });
#endif
}
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            Arguments... arguments) {
  launch_clusters(kernel, 1, grid, block, shared, stream, arguments...);
}

// Registers that a thread of a kernel takes, in the steps in which they are given out. The emulation has no registers;
// there it is the most that a block of its threads may have.
template <class... Parameters>
int registers_a_thread([[maybe_unused]] void (*kernel)(Parameters...), [[maybe_unused]] int most_threads) {
#if defined(__CUDACC__)
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel));
  return (attributes.numRegs + 7) / 8 * 8;
#else
  return 65536 / most_threads / 8 * 8;
#endif
}

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace cips3d

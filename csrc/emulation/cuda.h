// The CUDA language for a C++ compiler: keywords, built-in variables, types and functions that kernels use, run by an
// emulation of threads, warps and blocks on a CPU. For x86-64 or AArch64 and g++ 11 or newer; no toolkit is needed.
#pragma once

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#include "arithmetic.h"
#include "engine.h"
#include "half.h"
#include "types.h"
#include "warp.h"

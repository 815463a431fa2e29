// The largest magnitude in float32 tensors, found by whoever writes them: the products of split_matmul.cu want to know
// it, and would else need a pass over memory. As bits, among which those of NaN are larger than all others.
#pragma once
#include "numeric.h"

namespace cips3d {

template <class T>
constexpr bool kMeasures = std::is_same<T, float>::value;

template <int N>
__device__ __forceinline__ void measure(int& most, const float (&values)[N]) {
#pragma unroll
  for (int e = 0; e < N; e++) most = max(most, static_cast<int>(__float_as_uint(values[e]) & 0x7fffffffu));
}

// By all lanes of a warp.
__device__ __forceinline__ void raise(int* largest, int most) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) most = max(most, __shfl_xor_sync(~0u, most, offset));
  if (threadIdx.x % 32 == 0) atomicMax(largest, most);
}

}  // namespace cips3d

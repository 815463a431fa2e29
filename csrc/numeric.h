// Element types and vector access that kernels share.
#pragma once
#include <initializer_list>
#include <type_traits>

#include "runtime.h"

namespace cips3d {

// The dtypes of the Python side; the values are the contract with cips3d/ops/kernels.py.
enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ half from_float<half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

constexpr float kLargestHalf = 65504.0f;

__device__ __forceinline__ float clamp_to_half(float x) { return fminf(fmaxf(x, -kLargestHalf), kLargestHalf); }

// Makes the compiler compute a number here. Otherwise it may move the computation into the one branch that needs it,
// where each sine would wait for the one before; or keep in registers what it could as well compute again later.
__device__ __forceinline__ void compute_here([[maybe_unused]] float& x) {
#if defined(__CUDACC__)
  asm volatile("" : "+f"(x));
#endif
}
__device__ __forceinline__ void compute_here([[maybe_unused]] int& i) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(i));
#endif
}

// A number, with nothing computed from it ahead, for which registers would be taken meanwhile.
template <class Number>
__device__ __forceinline__ Number anew(Number x) {
  compute_here(x);
  return x;
}

constexpr int kCacheLine = 128;  // bytes

// Prefetches a line of device memory into the multiprocessor's L1 cache, without waiting for it.
__device__ __forceinline__ void prefetch_line([[maybe_unused]] const void* there) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L1 [%0];" ::"l"(there));
#endif
}

// N elements that move in one instruction where N * sizeof(T) is 4, 8 or 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T value[N];
};

// Elements of T in the widest access of 16 bytes.
template <class T>
constexpr int kVectorWidth = 16 / sizeof(T);

// Calls f with a value of the element type, so that `f` can be instantiated for it.
template <class F>
void for_dtype(int dtype, F f) {
  switch (static_cast<DType>(dtype)) {
    case DType::kFloat32: return f(float{});
    case DType::kFloat16: return f(half{});
    case DType::kBFloat16: return f(bfloat16{});
  }
  throw std::invalid_argument("dtype code " + std::to_string(dtype) + " is not known");
}

inline bool aligned_to(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Whether rows of `row` elements of T from each of the pointers can be moved N elements at a time.
template <class T, int N>
bool moves_in_vectors(int64_t row, std::initializer_list<const void*> pointers) {
  if (row % N != 0) return false;
  for (const void* pointer : pointers)
    if (!aligned_to(pointer, N * sizeof(T))) return false;
  return true;
}

// Calls f with a constant: N where `wide`, else 1.
template <int N, class F>
void for_vector(bool wide, F f) {
  if (wide)
    f(std::integral_constant<int, N>{});
  else
    f(std::integral_constant<int, 1>{});
}

// Calls f with the elements of the widest access, as a constant, where rows of `row` elements of T from each of the
// pointers can be moved by it, else with 1.
template <class T, class F>
void for_widest_vector(int64_t row, std::initializer_list<const void*> pointers, F f) {
  for_vector<kVectorWidth<T>>(moves_in_vectors<T, kVectorWidth<T>>(row, pointers), f);
}

}  // namespace cips3d

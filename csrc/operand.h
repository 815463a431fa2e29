// 16-bit operands of the matrix instructions that together stand for fp32 numbers.
//
// x = high + low + rest with high = round(x), low = round(x - high) and |rest| <= u^2 |x|, where u = 2^-11 for fp16 and
// 2^-8 for bf16. A product of two such numbers without low * low is off by at most 3 u^2 |x w|: 7e-7 of it for fp16,
// 4.6e-5 for bf16; over the mantissas that occur the rms is 0.29 u^2: 7e-8 and 4.5e-6. Products of 16-bit numbers are
// exact in fp32, where they are added.
//
// fp16 is for phases, where large gains and weights magnify an error, and for tensors that are fp16 themselves. Its
// exponents are short, so matrices are scaled row by row (see PackedMatrix), and fp32 rows of x by 2^6: beside the
// bound above, an element is then off by at most 2^-31, and |x| >= 1023.75 gives infinity, which the caller has to
// notice. bf16 is for gradients, whose magnitude may be anything.
#pragma once
#include "numeric.h"
#include "tensor_core.h"

namespace cips3d {

template <class E>
struct Operand;

template <>
struct Operand<half> {
  static constexpr float kRowScale = 64.0f;

  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t pair) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
  static __device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k16_f16(sum, a, {b0, b1}, sum);
  }
};

template <>
struct Operand<bfloat16> {
  static constexpr float kRowScale = 1.0f;

  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  }
  static __device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k16_bf16(sum, a, {b0, b1}, sum);
  }
};

// What x is scaled by on its way to an operand.
template <class E, class T>
constexpr float kRowScale = std::is_same<T, float>::value ? Operand<E>::kRowScale : 1.0f;

// A pair of fp32 numbers as scaled high parts and, with kLow, low parts.
template <class E, bool kLow>
__device__ __forceinline__ void split(float first, float second, uint32_t& high, uint32_t& low,
                                      float scale = Operand<E>::kRowScale) {
  first *= scale, second *= scale;
  high = Operand<E>::pack(first, second);
  if (kLow) {
    const float2 rounded = Operand<E>::unpack(high);
    low = Operand<E>::pack(first - rounded.x, second - rounded.y);
  }
}

// The power of two that brings a positive number to [2^14, 2^15), as far as there is one.
__device__ __forceinline__ float operand_scale(float largest) {
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23) - 127;
  return __uint_as_float(static_cast<uint32_t>(max(-120, min(120, 14 - exponent)) + 127) << 23);
}

__device__ __forceinline__ float inverse_scale(float scale) {
  return __uint_as_float((254u << 23) - __float_as_uint(scale));
}

// What two scales are undone by; their product may be no float32 number. The smaller one first, or x may become none.
__device__ __forceinline__ float unscaled(float x, float a, float b) { return x * fminf(a, b) * fmaxf(a, b); }

// The scale of a tensor whose largest magnitude is given: fp16 then loses nothing above 2^-39 of that. NaN where it is
// not finite, and so is what comes of it, rather than zero where the others were.
__device__ __forceinline__ float tensor_scale(const float* largest) {
  return operand_scale(*largest) + *largest * 0.0f;
}

// A pair of elements of T as it lies in memory, as a pair of E.
template <class E, class T>
__device__ __forceinline__ uint32_t converted(uint32_t pair) {
  if (std::is_same<E, T>::value) return pair;
  const float2 values = Operand<T>::unpack(pair);
  return Operand<E>::pack(values.x, values.y);
}

}  // namespace cips3d

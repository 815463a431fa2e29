// The types of the CUDA language that kernels use, so that no toolkit is needed to compile them for a CPU.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct float3 {
  float x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using cudaStream_t = struct CUstream_st*;

namespace cips3d::emulation {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// fp32 -> fp16, to nearest, ties to even; overflow gives infinity, NaN the canonical one.
inline uint16_t half_bits(float value) {
  constexpr uint32_t kInfinity = 255u << 23, kOverflow = (127u + 16u) << 23, kSmallestNormal = 113u << 23;
  uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits >= kOverflow) return static_cast<uint16_t>(bits > kInfinity ? 0x7fffu : sign | 0x7c00u);
  if (bits < kSmallestNormal) {
    // Adding 0.5 shifts the significand to where fp16's subnormals end; the addition rounds to nearest even.
    const uint32_t shifted = bits_as<uint32_t>(bits_as<float>(bits) + 0.5f);
    return static_cast<uint16_t>(sign | (shifted - bits_as<uint32_t>(0.5f)));
  }
  const uint32_t odd = bits >> 13 & 1;
  return static_cast<uint16_t>(sign | ((bits - (112u << 23) + 0xfffu + odd) >> 13));
}

inline float half_value(uint16_t half) {
  constexpr uint32_t kExponent = 0x7c00u << 13;
  uint32_t bits = (half & 0x7fffu) << 13;
  const uint32_t exponent = bits & kExponent;
  bits += 112u << 23;
  if (exponent == kExponent)
    bits += 112u << 23;  // infinity or NaN
  else if (exponent == 0)
    bits = bits_as<uint32_t>(bits_as<float>(bits + (1u << 23)) - bits_as<float>(113u << 23));  // subnormal
  return bits_as<float>(bits | (half & 0x8000u) << 16);
}

// fp32 -> bf16, to nearest, ties to even; NaN gives the canonical one.
inline uint16_t bfloat16_bits(float value) {
  if (value != value) return 0x7fff;
  const uint32_t bits = bits_as<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float bfloat16_value(uint16_t bfloat16) { return bits_as<float>(static_cast<uint32_t>(bfloat16) << 16); }

}  // namespace cips3d::emulation

// Conversions are explicit, stricter than the toolkit's: arithmetic on them would round differently there.
struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float value) : bits(cips3d::emulation::half_bits(value)) {}
  explicit operator float() const { return cips3d::emulation::half_value(bits); }
};
struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : bits(cips3d::emulation::bfloat16_bits(value)) {}
  explicit operator float() const { return cips3d::emulation::bfloat16_value(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half x_, __half y_) : x(x_), y(y_) {}
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(__nv_bfloat16 x_, __nv_bfloat16 y_) : x(x_), y(y_) {}
};
using half = __half;
using half2 = __half2;

// Conversions and arithmetic of fp16 and bf16 under the toolkit's names. Arithmetic rounds once, as on the device.
#pragma once
#include "types.h"

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }

inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }

namespace cips3d::emulation {

// fp64 -> fp32 toward zero, with the last bit set where that was not exact: rounding once more, to 11 bits or fewer,
// gives the same as rounding the fp64 number at once.
inline float round_to_odd(double value) {
  float rounded = static_cast<float>(value);
  if (static_cast<double>(rounded) == value || value != value) return rounded;
  if (std::fabs(static_cast<double>(rounded)) > std::fabs(value)) rounded = std::nextafter(rounded, 0.0f);
  return bits_as<float>(bits_as<uint32_t>(rounded) | 1);
}

// Of 16-bit numbers, to be rounded to 16 bits: that gives what rounding once would. In fp32 it would be rounded twice.
inline float multiply_add(float a, float b, float c) {
  return round_to_odd(std::fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c)));
}

inline __half larger(__half a, __half b) { return __half(std::fmax(float(a), float(b))); }
inline __half smaller(__half a, __half b) { return __half(std::fmin(float(a), float(b))); }

}  // namespace cips3d::emulation

inline __half __hfma(__half a, __half b, __half c) {
  return __half(cips3d::emulation::multiply_add(float(a), float(b), float(c)));
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __nv_bfloat16(cips3d::emulation::multiply_add(float(a), float(b), float(c)));
}
inline __half2 __hmax2(__half2 a, __half2 b) {
  return {cips3d::emulation::larger(a.x, b.x), cips3d::emulation::larger(a.y, b.y)};
}
inline __half2 __hmin2(__half2 a, __half2 b) {
  return {cips3d::emulation::smaller(a.x, b.x), cips3d::emulation::smaller(a.y, b.y)};
}

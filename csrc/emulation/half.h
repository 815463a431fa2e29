// Conversions and arithmetic of fp16 and bf16 under the toolkit's names. Arithmetic rounds once, as on the device.
#pragma once
#include "types.h"

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }

inline __half __ushort_as_half(unsigned short x) { return cips3d::emulation::bits_as<__half>(x); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return cips3d::emulation::bits_as<__nv_bfloat16>(x); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline __half2 __float2half2_rn(float x) { return {__half(x), __half(x)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {__nv_bfloat16(x), __nv_bfloat16(x)}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }

namespace cips3d::emulation {

// fp64 -> fp32 toward zero, with the last bit set where that was not exact: rounding once more, to 11 bits or fewer,
// gives the same as rounding the fp64 number at once.
inline float round_to_odd(double value) {
  float rounded = static_cast<float>(value);
  if (static_cast<double>(rounded) == value || value != value) return rounded;
  if (std::fabs(static_cast<double>(rounded)) > std::fabs(value)) rounded = std::nextafter(rounded, 0.0f);
  return bits_as<float>(bits_as<uint32_t>(rounded) | 1);
}

}  // namespace cips3d::emulation

// Sums and products in fp32 have more than twice the digits, so that rounding twice does no harm; a multiply-add has
// not.
#define CIPS3D_EMULATE_16_BIT(T, T2, from_float)                                                          \
  inline T __hadd(T a, T b) { return from_float(float(a) + float(b)); }                                   \
  inline T __hsub(T a, T b) { return from_float(float(a) - float(b)); }                                   \
  inline T __hmul(T a, T b) { return from_float(float(a) * float(b)); }                                   \
  inline T __hfma(T a, T b, T c) {                                                                        \
    return from_float(                                                                                    \
        cips3d::emulation::round_to_odd(std::fma(double(float(a)), double(float(b)), double(float(c))))); \
  }                                                                                                       \
  inline T __hneg(T a) { return from_float(-float(a)); }                                                  \
  inline T __hmax(T a, T b) { return from_float(std::fmax(float(a), float(b))); }                         \
  inline T __hmin(T a, T b) { return from_float(std::fmin(float(a), float(b))); }                         \
  inline bool __hgt(T a, T b) { return float(a) > float(b); }                                             \
  inline bool __hlt(T a, T b) { return float(a) < float(b); }                                             \
  inline T2 __hadd2(T2 a, T2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }                          \
  inline T2 __hsub2(T2 a, T2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }                          \
  inline T2 __hmul2(T2 a, T2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }                          \
  inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }          \
  inline T2 __hneg2(T2 a) { return {__hneg(a.x), __hneg(a.y)}; }                                          \
  inline T2 __hmax2(T2 a, T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                          \
  inline T2 __hmin2(T2 a, T2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }

CIPS3D_EMULATE_16_BIT(__half, __half2, __float2half_rn)
CIPS3D_EMULATE_16_BIT(__nv_bfloat16, __nv_bfloat162, __float2bfloat16_rn)
#undef CIPS3D_EMULATE_16_BIT

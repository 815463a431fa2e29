// Arithmetic, casts of bits and loads that CUDA has as functions: those that kernels like these need.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "types.h"

namespace cips3d::emulation {

// The special function unit sees the argument in revolutions: one fp32 product, rounded toward zero, no exact
// reduction. This is where __sinf loses its accuracy for large arguments. Its result is off by up to 2^-23; together
// that is what the CUDA programming guide promises from -pi to pi, 2^-21.41 for sines and 2^-21.19 for cosines.
inline double reduce_angle(float x) {
  const double exact = static_cast<double>(x) * 0.15915494f;
  float revolutions = static_cast<float>(exact);
  if (std::fabs(static_cast<double>(revolutions)) > std::fabs(exact)) revolutions = std::nextafter(revolutions, 0.0f);
  return (revolutions - std::rint(revolutions)) * 6.28318530717958648;
}
inline float unit_result(double value) {
  return static_cast<float>(std::fabs(value) < 0x1p-6 ? value : std::rint(value * 0x1p22) * 0x1p-22);
}
inline float fast_sin(float x) { return unit_result(std::sin(reduce_angle(x))); }
inline float fast_cos(float x) { return unit_result(std::cos(reduce_angle(x))); }
inline float fast_exp(float x) { return std::exp2(x * 1.44269504f); }

// Keeps the compiler from contracting a product or sum with its neighbours.
inline float as_rounded(float x) {
#if defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+x"(x));
#endif
  return x;
}

inline double half_turns(float x) { return 3.14159265358979324 * (x - 2.0 * std::rint(x * 0.5)); }

}  // namespace cips3d::emulation

// The C library declares functions of these names, hence macros.
#define __sinf(x) ::cips3d::emulation::fast_sin(x)
#define __cosf(x) ::cips3d::emulation::fast_cos(x)
#define __sincosf(x, s, c) (*(s) = ::cips3d::emulation::fast_sin(x), (void)(*(c) = ::cips3d::emulation::fast_cos(x)))
#define __expf(x) ::cips3d::emulation::fast_exp(x)
#define __logf(x) std::log(static_cast<float>(x))

inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float sinpif(float x) { return static_cast<float>(std::sin(cips3d::emulation::half_turns(x))); }
inline float cospif(float x) { return static_cast<float>(std::cos(cips3d::emulation::half_turns(x))); }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }  // NaN gives 0
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return cips3d::emulation::as_rounded(a + b); }
inline float __fmul_rn(float a, float b) { return cips3d::emulation::as_rounded(a * b); }

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return std::fmin(a, b); }  // the number where the other one is NaN
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline unsigned __float_as_uint(float x) { return cips3d::emulation::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cips3d::emulation::bits_as<float>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }

// Loads and stores with a hint for the caches.
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}

// What fields of sine layers share: sines of phases, and the ball that a density may begin as.
//
// Operands of their products (half_product.h) are float16 with float32 accumulation: |sin| <= 1 fits, and float16 keeps
// three bits more than bfloat16, which the sine of a phase of tens of radians needs.
#pragma once
#include "half_product.h"

namespace cips3d {

// The sine of a phase in radians. __sinf multiplies by 1/2pi in float32 first, whose rounding grows with the phase:
// 4e-6 up to 30 rad, small against the 5e-4 of a float16 operand. The accurate mode takes whole turns off first.
__device__ __forceinline__ float without_turns(float phase) {
  constexpr float kTurnHigh = 6.28125f, kTurnLow = 1.9353071795864769e-3f;  // their sum is 2 pi; 6.28125 has 8 bits
  const float turns = rintf(phase * 0.15915494309189535f);
  return fmaf(-turns, kTurnLow, fmaf(-turns, kTurnHigh, phase));
}
template <bool kAccurate>
__device__ __forceinline__ float sine(float phase) {
  return __sinf(kAccurate ? without_turns(phase) : phase);
}
template <bool kAccurate>
__device__ __forceinline__ float cosine(float phase) {
  return __cosf(kAccurate ? without_turns(phase) : phase);
}

// Every density gets density * (1 - |p| / radius); radius 0: nothing.
struct Ball {
  float density, radius;

  __device__ __forceinline__ float at(float3 p) const {
    return radius == 0.0f ? 0.0f : density * (1.0f - sqrtf(p.x * p.x + p.y * p.y + p.z * p.z) / radius);
  }
};

}  // namespace cips3d

// What fields of sine layers share: sines of phases, activations as operands, one step of a product.
//
// Operands are float16 with float32 accumulation: |sin| <= 1 fits, and float16 keeps three bits more than bfloat16,
// which the sine of a phase of tens of radians needs. In the accurate mode every operand is split into a high and a low
// float16, and high·high + low·high + high·low leaves a relative error of about 2^-21.
#pragma once
#include "operand.h"

namespace cips3d {

constexpr int kPadHalves = 8;  // rows of operands end 16 bytes later: the 8 rows of an ldmatrix lie in different banks

// Two activations as halves, and in the accurate mode what the rounding left over.
template <bool kAccurate>
__device__ __forceinline__ void pack_activations(float x, float y, uint32_t& high, uint32_t& low) {
  high = Operand<half>::pack(x, y);
  if (!kAccurate) return;
  const float2 kept = Operand<half>::unpack(high);
  low = Operand<half>::pack(x - kept.x, y - kept.y);
}

// The sine of a phase in radians. __sinf multiplies by 1/2pi in float32 first, whose rounding grows with the phase:
// 4e-6 up to 30 rad, small against the 5e-4 of a float16 operand. The accurate mode takes whole turns off first.
template <bool kAccurate>
__device__ __forceinline__ float sine(float phase) {
  if (!kAccurate) return __sinf(phase);
  constexpr float kTurnHigh = 6.28125f, kTurnLow = 1.9353071795864769e-3f;  // their sum is 2 pi; 6.28125 has 9 bits
  const float turns = rintf(phase * 0.15915494309189535f);
  return __sinf(fmaf(-turns, kTurnLow, fmaf(-turns, kTurnHigh, phase)));
}
template <bool kAccurate>
__device__ __forceinline__ float cosine(float phase) {
  if (!kAccurate) return __cosf(phase);
  constexpr float kTurnHigh = 6.28125f, kTurnLow = 1.9353071795864769e-3f;
  const float turns = rintf(phase * 0.15915494309189535f);
  return __cosf(fmaf(-turns, kTurnLow, fmaf(-turns, kTurnHigh, phase)));
}

// accumulator[m][n] += A[m] · B for 16 columns of A (one step) and 16 rows of a weight matrix [., kRow] from `row` on,
// columns from `column` on: n = 0 and 1 are its rows row to row + 7 and row + 8 to row + 15.
template <int kTiles, bool kAccurate, int kRow>
__device__ __forceinline__ void multiply_step(float (&accumulator)[kTiles][2][4], const uint32_t (&high)[kTiles][4],
                                              const uint32_t (&low)[kTiles][4], const half* weight, int low_offset,
                                              int row, int column, int lane) {
  // Lanes 0-7 and 8-15 address rows row..row+7 at columns 0 and 8, lanes 16-31 the same of rows row+8..row+15.
  const half* address = weight + (row + lane % 8 + lane / 16 * 8) * kRow + column + lane / 8 % 2 * 8;
  uint32_t b[4];
  ldmatrix_x4(b, address);
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const uint32_t pair[2] = {b[2 * n], b[2 * n + 1]};
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
      mma_m16n8k16_f16(accumulator[m][n], high[m], pair, accumulator[m][n]);
      if (kAccurate) mma_m16n8k16_f16(accumulator[m][n], low[m], pair, accumulator[m][n]);
    }
  }
  if (!kAccurate) return;
  ldmatrix_x4(b, address + low_offset);
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const uint32_t pair[2] = {b[2 * n], b[2 * n + 1]};
#pragma unroll
    for (int m = 0; m < kTiles; m++) mma_m16n8k16_f16(accumulator[m][n], high[m], pair, accumulator[m][n]);
  }
}

}  // namespace cips3d

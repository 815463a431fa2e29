// Products of 16-bit operands with float32 accumulation, of rows of activations and matrices in shared memory: float16,
// or where `E` says so bfloat16, as which pointers to half are then to be read.
//
// In the accurate mode every operand is split into a high and a low float16, and high·high + low·high + high·low leaves
// a relative error of about 2^-21.
#pragma once
#include "operand.h"

namespace cips3d {

constexpr int kPadHalves = 8;  // rows of operands end 16 bytes later: the 8 rows of an ldmatrix lie in different banks

// Which of its row's units of 8 halves is where `unit` would be. Rows of a few units are not padded; in this order, the
// 8 rows of an ldmatrix lie in different banks too.
template <int kRow>
__device__ __forceinline__ int place_of(int row, int unit) {
  return kRow == 16 ? unit ^ (row / 4 % 2) : kRow == 32 ? unit ^ (row / 2 % 4) : unit;
}

// Two activations as halves, and in the accurate mode what the rounding left over.
template <bool kAccurate>
__device__ __forceinline__ void pack_activations(float x, float y, uint32_t& high, uint32_t& low) {
  high = Operand<half>::pack(x, y);
  if (!kAccurate) return;
  const float2 kept = Operand<half>::unpack(high);
  low = Operand<half>::pack(x - kept.x, y - kept.y);
}

// Two gradients as halves; what is too large for them becomes the largest.
template <bool kAccurate>
__device__ __forceinline__ void pack_gradients(float x, float y, uint32_t& high, uint32_t& low) {
  if (kAccurate) return pack_activations<true>(clamp_to_half(x), clamp_to_half(y), high, low);
  const half2 most = __floats2half2_rn(kLargestHalf, kLargestHalf);
  const half2 pair = __hmin2(__hmax2(__floats2half2_rn(x, y), __floats2half2_rn(-kLargestHalf, -kLargestHalf)), most);
  memcpy(&high, &pair, sizeof(high));
}

// accumulator[m][n] += A[m] · B for 16 columns of A (one step) and 16 rows of a weight matrix [., kRow] from `row` on,
// columns from `column` on: n = 0 and 1 are its rows row to row + 7 and row + 8 to row + 15. Units are where place_of()
// has them.
template <int kTiles, bool kAccurate, int kRow, class E = half>
__device__ __forceinline__ void multiply_step(float (&accumulator)[kTiles][2][4], const uint32_t (&high)[kTiles][4],
                                              const uint32_t (&low)[kTiles][4], const half* weight, int low_offset,
                                              int row, int column, int lane) {
  // Lanes 0-7 and 8-15 address rows row..row+7 at columns 0 and 8, lanes 16-31 the same of rows row+8..row+15.
  const int place = place_of<kRow>(lane, column / 8 + lane / 8 % 2);
  const half* address = weight + (row + lane % 8 + lane / 16 * 8) * kRow + 8 * place;
  uint32_t b[4];
  if (kAccurate) {  // small products first
    ldmatrix_x4(b, address + low_offset);
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int m = 0; m < kTiles; m++) Operand<E>::mma(accumulator[m][n], high[m], b[2 * n], b[2 * n + 1]);
  }
  ldmatrix_x4(b, address);
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
      if (kAccurate) Operand<E>::mma(accumulator[m][n], low[m], b[2 * n], b[2 * n + 1]);
      Operand<E>::mma(accumulator[m][n], high[m], b[2 * n], b[2 * n + 1]);
    }
}

}  // namespace cips3d

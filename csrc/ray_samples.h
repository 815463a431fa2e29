// The arithmetic of samples on rays, the same in every kernel that has rays: densities, sampling, order.
#pragma once
#include "ops.h"

namespace cips3d {

constexpr float kLastDelta = 1e10f;            // length of the last interval: whatever density is there becomes opaque
constexpr float kTransmittanceFloor = 1e-10f;  // keeps T above 0 where alpha = 1, as in pi-GAN
constexpr float kSoftplusLinear = 20.0f;       // from here on softplus(x) = x, as in PyTorch
constexpr float kWeightFloor = 1e-5f;          // of importance sampling; added twice, as in pi-GAN
constexpr float kCdfFloor = 1e-5f;             // a step of the distribution flatter than this is not divided by

// The density σ of a raw one; NaN stays NaN.
__device__ __forceinline__ float activated(float raw, bool softplus) {
  if (softplus) return raw > kSoftplusLinear ? raw : log1pf(expf(raw));
  return raw <= 0.0f ? 0.0f : raw;
}

// Its derivative.
__device__ __forceinline__ float activation_slope(float raw, bool softplus) {
  if (softplus) return raw > kSoftplusLinear ? 1.0f : 1.0f / (1.0f + expf(-raw));
  return raw <= 0.0f ? 0.0f : 1.0f;
}

// A depth between the midpoints that a draw falls between, `share` of the way; exact at both ends, like torch.lerp.
__device__ __forceinline__ float between(float a, float b, float share) {
  return share < 0.5f ? a + share * (b - a) : b - (b - a) * (1.0f - share);
}

// Depths as unsigned numbers of the same order, NaN included: ranks among them are always a permutation.
constexpr unsigned kLastKey = 0xffffffffu;  // of no depth: behind all that are
__device__ __forceinline__ unsigned sortable(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);  // -0 becomes 0
  return min(bits & 0x80000000u ? ~bits : bits | 0x80000000u, kLastKey - 1);
}
__device__ __forceinline__ float from_sortable(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// How many of `count` keys come before `key`; of equal ones, the first `ties`.
__device__ __forceinline__ int count_before(const unsigned* keys, int count, unsigned key, int ties) {
  int before = 0;
#pragma unroll 1  // hardly ever needed
  for (int m = 0; m < count; m++) before += keys[m] < key || (keys[m] == key && m < ties);
  return before;
}

// Arrays of keys that are read by fours: aligned to 16 bytes, with kLastKey up to the next multiple of four.
__host__ __device__ constexpr int padded_keys(int count) { return (count + 3) / 4 * 4; }
__device__ __forceinline__ void pad_keys(unsigned* keys, int count, int lane) {
  if (lane < padded_keys(count) - count) keys[count + lane] = kLastKey;
}

// How many of four keys are smaller.
__device__ __forceinline__ int count_smaller(const uint4& four, unsigned key) {
  return (four.x < key) + (four.y < key) + (four.z < key) + (four.w < key);
}

// How many keys of each of such arrays are smaller than a key, side by side.
template <int K, class Key>
__device__ __forceinline__ void count_smaller(int (&smaller)[K], Key* const (&keys)[K], int count,
                                              const unsigned (&key)[K]) {
#pragma unroll
  for (int k = 0; k < K; k++) smaller[k] = 0;
#pragma unroll 1
  for (int m = 0; m < count; m += 4) {
    uint4 four[K];
#pragma unroll
    for (int k = 0; k < K; k++) four[k] = *reinterpret_cast<const uint4*>(keys[k] + m);
#pragma unroll
    for (int k = 0; k < K; k++) smaller[k] += count_smaller(four[k], key[k]);
  }
}

__device__ __forceinline__ int count_smaller(const unsigned* keys, int count, unsigned key) {
  int smaller[1];
  const unsigned* const of[1] = {keys};
  const unsigned than[1] = {key};
  count_smaller(smaller, of, count, than);
  return smaller[0];
}

// Whether `arrays` times `count` keys have no equal ones in any array, from each lane's sum of their ranks by
// count_smaller; by a warp. Every pair counts once, unless its keys are equal.
__device__ __forceinline__ bool all_distinct(int sum, int count, int arrays) {
  return __reduce_add_sync(~0u, sum) == arrays * (count * (count - 1) / 2);
}

// How many elements of ascending arrays are smaller than an x of each, side by side. Every lane takes as many steps,
// and those of torch.searchsorted: where an array does not ascend, what is found depends on them.
template <int K, class Float>
__device__ __forceinline__ void lower_bound(int (&smaller)[K], Float* const (&ascending)[K], int count,
                                            const float (&x)[K]) {
  int left[K];  // elements that it is still among
#pragma unroll
  for (int k = 0; k < K; k++) smaller[k] = 0, left[k] = count;
#pragma unroll 1
  for (int most = count; most > 0; most /= 2) {
    float middle[K];
#pragma unroll
    for (int k = 0; k < K; k++) middle[k] = ascending[k][min(smaller[k] + left[k] / 2, count - 1)];
#pragma unroll
    for (int k = 0; k < K; k++) {
      const bool behind = left[k] > 0 && middle[k] < x[k];
      const int below = left[k] / 2;
      smaller[k] += behind ? below + 1 : 0;
      left[k] = behind ? left[k] - below - 1 : below;
    }
  }
}

__device__ __forceinline__ int lower_bound(const float* ascending, int count, float x) {
  int smaller[1];
  const float* const of[1] = {ascending};
  const float than[1] = {x};
  lower_bound(smaller, of, count, than);
  return smaller[0];
}

}  // namespace cips3d

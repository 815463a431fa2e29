// The field of siren_field.h for compute capability 9.0, with float16 operands: the same arithmetic, other
// instructions.
//
// Matrix instructions of four warps (wgmma) read weights from shared memory by themselves: no loads, half as many
// clocks of the matrix unit, and warps that go on meanwhile. Activations are operands in registers. A warp has 16
// samples at a time, so that with 168 registers a thread there are three warps on every scheduler, which hide each
// other's waiting.
#pragma once
#include "ray_march.h"
#include "siren_field.h"
#include "warpgroup.h"

namespace cips3d {

// One of kCount warpgroups of a block.
template <int kCount>
struct WarpgroupTeam {
  static constexpr int kTeams = kCount, kThreads = 128;
  // Through a shuffle the compiler knows it to be the same in a whole warp: see warp_of.
  __device__ __forceinline__ static int index() { return __shfl_sync(~0u, threadIdx.x / kThreads, 0); }
  __device__ __forceinline__ static int thread() { return threadIdx.x % kThreads; }
  __device__ __forceinline__ static constexpr int threads() { return kThreads; }
  __device__ __forceinline__ static void sync() { warpgroup_sync(); }
};

// The field at the 16 samples of each warp of a warpgroup. Lane 4 g + t of a warp brings the points of its rows g and
// g + 8, gets their raw densities, and hands pairs of their colour activations to store(r, channel, pair), for channels
// 8 n + 2 t and the one behind.
template <class Store>
__device__ __forceinline__ void evaluate_field(const FieldWeights<128, 64, false, true>& weights,
                                               const float3 (&points)[2], float (&density)[2], Store store) {
  constexpr int kWidth = 128, kColor = 64, kSteps = kWidth / 16, kHalf = kSteps / 2;
  constexpr int kCore = 64, kCoreBytes = kCore * sizeof(half);
  const int pair = threadIdx.x % 4 * 2;

  // First layer, in float32 and straight into the layout of an operand A.
  uint32_t h1[kSteps][4];
#pragma unroll
  for (int k = 0; k < kSteps; k++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float4 a = weights.first[16 * k + 8 * e + pair], b = weights.first[16 * k + 8 * e + pair + 1];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float3 p = points[r];
        h1[k][2 * e + r] = Operand<half>::pack(sine<false>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w)))),
                                               sine<false>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w)))));
      }
    }

  // Second layer, half of its channels as a group of products each: while the sines of one half are computed, the other
  // half or its part of the colours is multiplied.
  float phase[2][32], color[32];
  const MatrixOperand second = matrix_operand(weights.second, kWidth / 8 * kCoreBytes, kCoreBytes),
                      to_color = matrix_operand(weights.color, kColor / 8 * kCoreBytes, kCoreBytes);
  __syncwarp();  // the lanes have to come to matrix instructions together
  wgmma_fence(h1);
#pragma unroll
  for (int h = 0; h < 2; h++) {
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      const MatrixOperand b = second.at((2 * k * (kWidth / 8) + 8 * h) * kCoreBytes);
      k == 0 ? wgmma_m64n64k16_f16<false>(phase[h], h1[k], b) : wgmma_m64n64k16_f16<true>(phase[h], h1[k], b);
    }
    wgmma_commit();
  }
  density[0] = density[1] = 0.0f;
  uint32_t h2[2][kHalf][4];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    h == 0 ? wgmma_wait<1>(phase[0]) : wgmma_wait<1>(phase[1], h1);
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const int channel = 64 * h + 8 * n + pair;
      const float2 bias = *reinterpret_cast<const float2*>(weights.second_bias + channel);
      const float2 v = *reinterpret_cast<const float2*>(weights.density + channel);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float x = sine<false>(phase[h][4 * n + 2 * r] + bias.x);
        const float y = sine<false>(phase[h][4 * n + 2 * r + 1] + bias.y);
        density[r] = fmaf(x, v.x, fmaf(y, v.y, density[r]));
        h2[h][n / 2][n % 2 * 2 + r] = Operand<half>::pack(x, y);
      }
    }
    wgmma_fence(h2[h]);
#pragma unroll
    for (int k = 0; k < kHalf; k++) {
      const MatrixOperand b = to_color.at(2 * (kHalf * h + k) * (kColor / 8) * kCoreBytes);
      h + k == 0 ? wgmma_m64n64k16_f16<false>(color, h2[h][k], b) : wgmma_m64n64k16_f16<true>(color, h2[h][k], b);
    }
    wgmma_commit();
  }

#pragma unroll
  for (int r = 0; r < 2; r++) {  // the four lanes of a row have a quarter of its channels each
    float sum = density[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    density[r] = sum + weights.density[kWidth];
  }
  wgmma_wait<0>(color, h2[0], h2[1]);
  uint32_t colors[kColor / 8][2];  // all before the first store: loads never move up across one
#pragma unroll
  for (int n = 0; n < kColor / 8; n++) {
    const float2 bias = *reinterpret_cast<const float2*>(weights.color_bias + 8 * n + pair);
#pragma unroll
    for (int r = 0; r < 2; r++)
      colors[n][r] = Operand<half>::pack(sine<false>(color[4 * n + 2 * r] + bias.x),
                                         sine<false>(color[4 * n + 2 * r + 1] + bias.y));
  }
#pragma unroll
  for (int n = 0; n < kColor / 8; n++)
#pragma unroll
    for (int r = 0; r < 2; r++) store(r, 8 * n + pair, colors[n][r]);
}

struct WarpgroupField {
  using Layers = FieldLayers;
  using Team = WarpgroupTeam<3>;
  using Color = half;
  using Weights = FieldWeights<128, 64, false, true>;
  static constexpr int kColorRow = 64 + kPadColors<Color>, kStep = 64, kRound = 75;
  static constexpr int kFewestWarps = 4, kMostWarps = 4, kMostThreads = Team::kThreads * Team::kTeams;
  static constexpr bool kFits = kHasWarpgroups;

  static int step(int) { return kStep; }
  static size_t bytes(const Layers&) { return Weights::kBytes; }
  __host__ __device__ static constexpr int color_row(const Layers&) { return kColorRow; }
  __device__ __forceinline__ static int channels(const Layers& layers) { return layers.color; }

  const Layers& layers;
  Weights weights;

  __device__ __forceinline__ WarpgroupField(SharedArrays& shared, const Layers& given)
      : layers(given), weights(shared) {}
  __device__ __forceinline__ void begin(int64_t image) {
    weights.load(layers, image);
    fence_for_async_reads();
  }

  __device__ __forceinline__ void evaluate(const SamplePass<Color>& pass) const {
    for (int base = 0; base < pass.size(); base += kStep) {
      float3 points[2];
      int at[2];
      float ball[2];  // now, not when the density is there: the points would take registers until then
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int row = base + Team::thread() / 32 * 16 + 8 * r + threadIdx.x % 32 / 4;
        const PassSample sample = pass[row];
        at[r] = row < pass.size() ? sample.at : -1;
        points[r] = sample.point;
        ball[r] = layers.ball.at(sample.point);
      }
      float density[2];
      evaluate_field(weights, points, density, [&](int r, int channel, uint32_t pair) {
        if (at[r] >= 0) *reinterpret_cast<uint32_t*>(pass.scratch.colors + at[r] * kColorRow + channel) = pair;
      });
      if (threadIdx.x % 4 == 0) {
#pragma unroll
        for (int r = 0; r < 2; r++)
          if (at[r] >= 0) pass.scratch.density[at[r]] = density[r] + ball[r];
      }
    }
  }
};

}  // namespace cips3d

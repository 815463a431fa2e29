// The gradients of sample_gradients.h for compute capability 9.0, with float16 operands: the same arithmetic with the
// matrix instructions of four warps (wgmma), which read activations and weights from shared memory by themselves, the
// weights of the gradients' products transposed. A warp has 16 samples with all of their channels, 64 at a time.
#pragma once
#include "sample_gradients.h"
#include "warpgroup.h"

namespace cips3d {

// The operands of a warpgroup's products.
template <class Buffers>
struct StepOperands {
  static constexpr int kCoreBytes = 64 * sizeof(half), kGroups = Buffers::kRows / 8;

  // Rows of the warpgroup in a buffer, from its first column on: the next 16 columns lie kStep bytes on.
  static constexpr int kStep = 2 * kGroups * kCoreBytes;
  static __device__ __forceinline__ MatrixOperand rows(const half* buffer, int warpgroup) {
    return matrix_operand(buffer + warpgroup * 8 * 64, kGroups * kCoreBytes, kCoreBytes);
  }
};

// sums[h] = A · Wᵀ for 16 kDepth columns of A and rows 64 h to 64 h + 63 of a matrix of kRows rows in core matrices; or
// with kTransposed A · W for 64 of its columns. One group of products for each h.
template <int kDepth, int kRows, int kStep, bool kTransposed, int kHalves>
__device__ __forceinline__ void start_products(float (&sums)[kHalves][32], MatrixOperand a, const half* weight) {
  constexpr int kCoreBytes = 64 * sizeof(half), kColumnBytes = kRows / 8 * kCoreBytes;  // to the next 8 columns
  // Transposed, columns of the matrix are the operand's rows.
  const MatrixOperand b =
      kTransposed ? matrix_operand(weight, kCoreBytes, kColumnBytes) : matrix_operand(weight, kColumnBytes, kCoreBytes);
  constexpr int kHalf = kTransposed ? 8 * kColumnBytes : 8 * kCoreBytes;
  constexpr int kOn = kTransposed ? 2 * kCoreBytes : 2 * kColumnBytes;
#pragma unroll
  for (int h = 0; h < kHalves; h++) {
#pragma unroll
    for (int k = 0; k < kDepth; k++) {
      const MatrixOperand first = a.at(k * kStep), second = b.at(h * kHalf + k * kOn);
      k == 0 ? wgmma_m64n64k16_f16<false, kTransposed>(sums[h], first, second)
             : wgmma_m64n64k16_f16<true, kTransposed>(sums[h], first, second);
    }
    wgmma_commit();
  }
}

// Two samples of eight rays: row g is the later, row g + 8 the earlier one of ray g; see sample_gradients.h. For
// gradients of rays there are no registers.
template <bool kRayGradients, class Buffers>
__device__ __forceinline__ void differentiate_samples(const FieldWeights<128, 64, false, true>& weights,
                                                      const Buffers& buffers, RayState& ray, const SavedRays& saved,
                                                      const OutputGradients& gradients, const BackwardSettings& s,
                                                      const FieldLayers& layers, int later, int first_row, int,
                                                      int lane) {
  static_assert(!kRayGradients, "");
  constexpr int kWidth = 128, kColor = 64, kWide = Buffers::kWide, kStep = StepOperands<Buffers>::kStep;
  constexpr int kAtATime = 4;  // groups of eight channels whose weights are read ahead of what is stored
  const int pair = lane % 4 * 2, row[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  const auto rows = [&](const half* buffer) { return StepOperands<Buffers>::rows(buffer, warpgroup); };
  // What the warpgroup's threads have written is there for its products.
  const auto publish = [] {
    fence_for_async_reads();
    warpgroup_sync();
  };
  // Computed anew wherever they are needed, from what the first cache has: there are no registers in between.
  float3 point[2];
  const auto find_points = [&] {
    const float3 o = load3(saved.origins + 3 * ray.index), d = load3(saved.directions + 3 * ray.index);
#pragma unroll
    for (int r = 0; r < 2; r++)
      point[r] = make_float3(fmaf(ray.depth[r], d.x, o.x), fmaf(ray.depth[r], d.y, o.y), fmaf(ray.depth[r], d.z, o.z));
  };
  find_points();
  float4 next[2] = {weights.first[pair], weights.first[pair + 1]};
#pragma unroll
  for (int n = 0; n < kWidth / 8; n++) {
    const int channel = 8 * n + pair, behind = min(channel + 8, kWidth - 2);
    const float4 a = next[0], b = next[1];
    next[0] = weights.first[behind], next[1] = weights.first[behind + 1];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float3 p = point[r];
      const float x = sine<false>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w))));
      const float y = sine<false>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w))));
      Buffers::template put<kWide>(buffers.h1, row[r], channel, Operand<half>::pack(x, y), 0);
    }
  }
  publish();

  float density[2] = {0.0f, 0.0f}, sums[2][32];
  wgmma_fence();
  start_products<kWidth / 16, kWidth, kStep, false>(sums, rows(buffers.h1), weights.second);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    h == 0 ? wgmma_wait<1>(sums[0]) : wgmma_wait<0>(sums[1]);
#pragma unroll
    for (int first = 0; first < 8; first += kAtATime) {
      float2 bias[kAtATime], v[kAtATime];
#pragma unroll
      for (int n = 0; n < kAtATime; n++) {
        const int channel = 64 * h + 8 * (first + n) + pair;
        bias[n] = *reinterpret_cast<const float2*>(weights.second_bias + channel);
        v[n] = *reinterpret_cast<const float2*>(weights.density + channel);
      }
#pragma unroll
      for (int n = 0; n < kAtATime; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int channel = 64 * h + 8 * (first + n) + pair, i = 4 * (first + n) + 2 * r;
          const float px = sums[h][i] + bias[n].x, py = sums[h][i + 1] + bias[n].y;
          const float x = sine<false>(px), y = sine<false>(py);
          density[r] = fmaf(x, v[n].x, fmaf(y, v[n].y, density[r]));
          Buffers::template put<kWide>(buffers.h2, row[r], channel, Operand<half>::pack(x, y), 0);
          Buffers::template put<kWide>(buffers.second, row[r], channel,
                                       Operand<half>::pack(cosine<false>(px), cosine<false>(py)), 0);
        }
    }
  }
  publish();

  float color[1][32];
  wgmma_fence();
  start_products<kWidth / 16, kColor, kStep, false>(color, rows(buffers.h2), weights.color);
  float2 grad_color[kColor / 8];
  const float* grad_colors = gradients.colors + ray.index * s.color_row;
#pragma unroll
  for (int n = 0; n < kColor / 8; n++) {
    const int channel = 8 * n + pair;
    grad_color[n] =
        channel < layers.color ? *reinterpret_cast<const float2*>(grad_colors + channel) : make_float2(0, 0);
  }
  const SampleInputs inputs = load_inputs(ray, saved, gradients, s, later);
  // Once more in every step, which takes no registers in between.
  ray.grad_sum = gradients.weight_sum == nullptr ? 0.0f : gradients.weight_sum[ray.index];
  ray.grad_depth = gradients.depth == nullptr ? 0.0f : gradients.depth[ray.index];
  ray.depth_behind = saved.depths[ray.index * s.samples + min(later + 1, s.samples - 1)];
  wgmma_wait<0>(color[0]);
  find_points();
  SampleGradient sample[2];
  differentiate_colors<kColor / 16, false>(sample, color[0], density, point, weights, buffers, ray, saved, s, layers,
                                           grad_color, inputs, later, row, 0, lane);
  publish();

  // Gradient of the second phase: cos ⊙ (colour gradients · Wc + density gradient · v).
  const float of_colors = buffers.scales[kScaleOfAll] / buffers.scales[kScaleOfColors];
  wgmma_fence();
  start_products<kColor / 16, kColor, kStep, true>(sums, rows(buffers.color), weights.color);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    h == 0 ? wgmma_wait<1>(sums[0]) : wgmma_wait<0>(sums[1]);
#pragma unroll
    for (int first = 0; first < 8; first += kAtATime) {
      float2 v[kAtATime], slope[kAtATime][2];
#pragma unroll
      for (int n = 0; n < kAtATime; n++) {
        const int channel = 64 * h + 8 * (first + n) + pair;
        v[n] = *reinterpret_cast<const float2*>(weights.density + channel);
#pragma unroll
        for (int r = 0; r < 2; r++) slope[n][r] = Buffers::template get<kWide>(buffers.second, row[r], channel);
      }
#pragma unroll
      for (int n = 0; n < kAtATime; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int i = 4 * (first + n) + 2 * r;
          const float x = fmaf(of_colors, sums[h][i], sample[r].density * v[n].x) * slope[n][r].x;
          const float y = fmaf(of_colors, sums[h][i + 1], sample[r].density * v[n].y) * slope[n][r].y;
          uint32_t both, none;
          pack_gradients<false>(x, y, both, none);
          Buffers::template put<kWide>(buffers.second, row[r], 64 * h + 8 * (first + n) + pair, both, 0);
        }
    }
  }
  publish();

  // Gradient of the first phase: cos ⊙ (gradient of the second phase · W2), the phase computed once more.
  find_points();
  wgmma_fence();
  start_products<kWidth / 16, kWidth, kStep, true>(sums, rows(buffers.second), weights.second);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    h == 0 ? wgmma_wait<1>(sums[0]) : wgmma_wait<0>(sums[1]);
#pragma unroll
    for (int first = 0; first < 8; first += kAtATime) {
      float4 of_first[kAtATime][2];
#pragma unroll
      for (int n = 0; n < kAtATime; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) of_first[n][i] = weights.first[64 * h + 8 * (first + n) + pair + i];
#pragma unroll
      for (int n = 0; n < kAtATime; n++) {
        const float4 a = of_first[n][0], b = of_first[n][1];
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int i = 4 * (first + n) + 2 * r;
          const float3 p = point[r];
          const float x = sums[h][i] * cosine<false>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w))));
          const float y = sums[h][i + 1] * cosine<false>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w))));
          uint32_t both, none;
          pack_gradients<false>(x, y, both, none);
          Buffers::template put<kWide>(buffers.first, row[r], 64 * h + 8 * (first + n) + pair, both, 0);
        }
      }
    }
  }
  load_depths(ray, saved, s, later - 2);
}

}  // namespace cips3d

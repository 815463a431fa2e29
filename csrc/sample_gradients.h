// The gradients at single samples of rays: the field evaluated once more, the compositing and then layer after layer
// differentiated.
#pragma once
#include "layer_sums.h"
#include "ray_samples.h"

namespace cips3d {

struct SavedRays {
  const float* origins;        // [B, R, 3]
  const float* directions;     // [B, R, 3]
  const float* depths;         // [B, R, N] ascending
  const float* transmittance;  // [B, R, N] in front of each sample
  const float* weights;        // [B, R, N]
  const float* noise;          // [B, R, N] added to the densities, or null
};

struct OutputGradients {
  const float* colors;      // [B, R, C]
  const float* weight_sum;  // [B, R] or null
  const float* depth;       // [B, R] or null
  const float* weights;     // [B, R, N] or null
  const float* scales;      // [2] by GradientScale
};

struct BackwardSettings {
  int64_t images, rays;
  int samples;
  bool softplus, last_back;
};

// accumulator[n] += A · Wᵀ's transpose, that is A · W, for 16 rows of W [., kRow] from `row` on (the step of the sum)
// and 16 columns from `column` on.
template <bool kAccurate, int kRow>
__device__ __forceinline__ void multiply_step_transposed(float (&accumulator)[2][4], const uint32_t (&high)[4],
                                                         const uint32_t (&low)[4], const half* weight, int low_offset,
                                                         int row, int column, int lane) {
  const half* address = weight + (row + lane % 16) * kRow + column + lane / 16 * 8;
  uint32_t b[4];
  ldmatrix_x4_trans(b, address);
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const uint32_t pair[2] = {b[2 * n], b[2 * n + 1]};
    mma_m16n8k16_f16(accumulator[n], high, pair, accumulator[n]);
    if (kAccurate) mma_m16n8k16_f16(accumulator[n], low, pair, accumulator[n]);
  }
  if (!kAccurate) return;
  ldmatrix_x4_trans(b, address + low_offset);
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const uint32_t pair[2] = {b[2 * n], b[2 * n + 1]};
    mma_m16n8k16_f16(accumulator[n], high, pair, accumulator[n]);
  }
}

// One ray of a lane: what stays the same over its samples, and what runs from back to front.
struct RayState {
  float3 origin, direction;
  float grad_sum, grad_depth, behind, last_gradient;
  float3 grad_origin, grad_direction;
  int64_t index;  // of the ray in [B, R]
  bool there;
};

// Alpha compositing at one sample, backward; see the composite op.
struct SampleGradient {
  float weight;   // what its colour is multiplied with
  float density;  // gradient of the raw density
};

__device__ __forceinline__ SampleGradient differentiate_sample(RayState& ray, const SavedRays& saved,
                                                               const OutputGradients& gradients,
                                                               const BackwardSettings& s, int i, float raw,
                                                               float grad_of_colors, float depth) {
  if (!ray.there || i >= s.samples) return {0.0f, 0.0f};
  const int64_t at = ray.index * s.samples + i;
  if (saved.noise != nullptr) raw += saved.noise[at];
  const bool last = i + 1 == s.samples;
  const float delta = last ? kLastDelta : saved.depths[at + 1] - depth;
  const float density = activated(raw, s.softplus), slope = activation_slope(raw, s.softplus);
  const float passed = expf(-delta * density), alpha = 1.0f - passed, light = saved.transmittance[at];
  float grad = grad_of_colors + ray.grad_depth * depth;
  if (gradients.weights != nullptr) grad += gradients.weights[at];
  const float weight = alpha * light;
  float shown = weight;
  if (s.last_back) {
    // The last sample shows 1 minus the others: it takes no gradient of its own and its gradient goes off the others'.
    if (last) ray.last_gradient = grad, shown = saved.weights[at];
    grad -= ray.last_gradient;
  }
  grad += ray.grad_sum;  // goes by the weights without that
  const float grad_alpha = grad * light - ray.behind / (1.0f - alpha + kTransmittanceFloor);
  ray.behind += grad * weight;
  return {shown, grad_alpha * delta * passed * slope};
}

// An operand A [16, 16] of rows `row` to row + 15 of a buffer, columns `column` to column + 15, that the tile's warps
// have written.
template <int kRow>
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], const half* buffer, int row, int column, int lane) {
  ldmatrix_x4(a, buffer + (row + lane % 16) * kRow + column + lane / 16 * 8);
}

// Values `channel` (even) and the one behind it of a row of `channels`; those past its end are 0. Rows may be those of
// a part of a larger tensor, which begins anywhere.
__device__ __forceinline__ float2 pair_of_channels(const float* row, int channel, int channels) {
  if (channels % 2 == 0 && reinterpret_cast<uintptr_t>(row) % sizeof(float2) == 0)
    return channel < channels ? *reinterpret_cast<const float2*>(row + channel) : make_float2(0.0f, 0.0f);
  return make_float2(channel < channels ? row[channel] : 0.0f, channel + 1 < channels ? row[channel + 1] : 0.0f);
}

// Two samples of eight rays: row g is the later, row g + 8 the earlier one of ray g. Recomputes the field,
// differentiates the compositing and then layer after layer, and leaves in the buffers what the sums need. A warp has
// the `share`th part of every layer's channels; the rays are with all warps of a tile.
template <bool kRayGradients, int kWidth, int kColor, bool kAccurate, class Buffers>
__device__ __forceinline__ void differentiate_samples(const FieldWeights<kWidth, kColor, kAccurate>& weights,
                                                      const Buffers& buffers, RayState& ray, const SavedRays& saved,
                                                      const OutputGradients& gradients, const BackwardSettings& s,
                                                      const FieldLayers& layers, int later, int first_row, int share,
                                                      int lane) {
  const int colors = layers.color;
  using Weights = FieldWeights<kWidth, kColor, kAccurate>;
  constexpr int kRow = Weights::kRow, kWide = Buffers::kWide, kNarrow = Buffers::kNarrow;
  constexpr int kDepth = kWidth / 16, kColorDepth = kColor / 16;  // steps of a product's sum
  constexpr int kSteps = kDepth / Buffers::kSharers, kColorSteps = kColorDepth / Buffers::kSharers;  // own columns
  // Whether operands A are read from the buffers again for every product: there are no registers for them besides the
  // low parts or the rays' gradients, and a warp that shares its tile has not made all of them itself.
  constexpr bool kReload = kAccurate || kRayGradients || Buffers::kSharers > 1;
  const int pair = lane % 4 * 2;
  const int row[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
  const int own = 16 * kSteps * share, own_color = 16 * kColorSteps * share;  // first channels
  float depth[2];
  float3 point[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = min(later - r, s.samples - 1);
    depth[r] = saved.depths[ray.index * s.samples + i];
    point[r] = make_float3(fmaf(depth[r], ray.direction.x, ray.origin.x), fmaf(depth[r], ray.direction.y, ray.origin.y),
                           fmaf(depth[r], ray.direction.z, ray.origin.z));
  }

  uint32_t h1[kReload ? 1 : kDepth][4];
#pragma unroll
  for (int k = 0; k < kSteps; k++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int channel = own + 16 * k + 8 * e + pair;
      const float4 a = weights.first[channel], b = weights.first[channel + 1];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float3 p = point[r];
        uint32_t high, low = 0;
        pack_activations<kAccurate>(sine<kAccurate>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w)))),
                                    sine<kAccurate>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w)))), high, low);
        if (!kReload) h1[kReload ? 0 : k][2 * e + r] = high;
        Buffers::template put<kWide>(buffers.h1, row[r], channel, high, low);
      }
    }
  Buffers::meet();

  float density[2] = {0.0f, 0.0f};
#pragma unroll 1
  for (int column = own; column < own + 16 * kSteps; column += 16) {
    float phase[1][2][4] = {};
#pragma unroll
    for (int k = 0; k < kDepth; k++) {
      uint32_t high[1][4], low[1][4] = {};
      if (kReload) {
        load_rows<kWide>(high[0], buffers.h1, first_row, 16 * k, lane);
        if (kAccurate) load_rows<kWide>(low[0], buffers.h1, Buffers::kRows + first_row, 16 * k, lane);
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) high[0][i] = h1[kReload ? 0 : k][i];
      }
      multiply_step<1, kAccurate, kRow>(phase, high, low, weights.second, kWidth * kRow, column, 16 * k, lane);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int channel = column + 8 * n + pair;
      const float2 bias = *reinterpret_cast<const float2*>(weights.second_bias + channel);
      const float2 v = *reinterpret_cast<const float2*>(weights.density + channel);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float px = phase[0][n][2 * r] + bias.x, py = phase[0][n][2 * r + 1] + bias.y;
        const float x = sine<kAccurate>(px), y = sine<kAccurate>(py);
        density[r] = fmaf(x, v.x, fmaf(y, v.y, density[r]));
        uint32_t high, low = 0;
        pack_activations<kAccurate>(x, y, high, low);
        Buffers::template put<kWide>(buffers.h2, row[r], channel, high, low);
        pack_activations<kAccurate>(cosine<kAccurate>(px), cosine<kAccurate>(py), high, low);
        Buffers::template put<kWide>(buffers.second, row[r], channel, high, low);
      }
    }
  }
  Buffers::meet();

  float color[kColorSteps][1][2][4] = {};
#pragma unroll 2
  for (int k = 0; k < kDepth; k++) {
    uint32_t high[1][4], low[1][4] = {};
    load_rows<kWide>(high[0], buffers.h2, first_row, 16 * k, lane);
    if (kAccurate) load_rows<kWide>(low[0], buffers.h2, Buffers::kRows + first_row, 16 * k, lane);
#pragma unroll
    for (int c = 0; c < kColorSteps; c++)
      multiply_step<1, kAccurate, kRow>(color[c], high, low, weights.color, kColor * kRow, own_color + 16 * c, 16 * k,
                                        lane);
  }

  // The density, and the gradient of a sample's weight through its colours, Σ g_c colour_c: first of the lane's own
  // channels, then of all of them.
  float totals[4] = {density[0], density[1], 0.0f, 0.0f};
  const float* grad_colors = gradients.colors + ray.index * colors;
#pragma unroll
  for (int n = 0; n < 2 * kColorSteps; n++) {
    const int channel = own_color + 8 * n + pair;
    const float2 bias = *reinterpret_cast<const float2*>(weights.color_bias + channel);
    const float2 grad = pair_of_channels(grad_colors, channel, colors);
    float (&phase)[4] = color[n / 2][0][n % 2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      phase[2 * r] += bias.x;
      phase[2 * r + 1] += bias.y;
      totals[2 + r] =
          fmaf(grad.x, sine<kAccurate>(phase[2 * r]), fmaf(grad.y, sine<kAccurate>(phase[2 * r + 1]), totals[2 + r]));
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) totals[i] += __shfl_xor_sync(~0u, totals[i], bit);
  buffers.sum_over_sharers(totals, 8, lane / 4, lane % 4 == 0);
  SampleGradient sample[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    sample[r] =
        differentiate_sample(ray, saved, gradients, s, later - r,
                             totals[r] + weights.density_bias + layers.ball.at(point[r]), totals[2 + r], depth[r]);
    sample[r].weight *= buffers.scales[kScaleOfColors];
    sample[r].density = clamp_to_half(sample[r].density * buffers.scales[kScaleOfAll]);
  }

  // Gradients of the colour phases, and behind them those of the densities.
#pragma unroll
  for (int n = 0; n < 2 * kColorSteps; n++) {
    const int channel = own_color + 8 * n + pair;
    const float2 grad = pair_of_channels(grad_colors, channel, colors);
    const float (&phase)[4] = color[n / 2][0][n % 2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      uint32_t high, low = 0;
      const float x = cosine<kAccurate>(phase[2 * r]) * sample[r].weight * grad.x;
      const float y = cosine<kAccurate>(phase[2 * r + 1]) * sample[r].weight * grad.y;
      pack_activations<kAccurate>(clamp_to_half(x), clamp_to_half(y), high, low);
      Buffers::template put<kNarrow>(buffers.color, row[r], channel, high, low);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (share > 0) continue;
    uint32_t high = 0, low = 0;
    if (pair == 0) pack_activations<kAccurate>(sample[r].density, 0.0f, high, low);
    Buffers::template put<kNarrow>(buffers.color, row[r], kColor + pair, high, low);
    Buffers::template put<kNarrow>(buffers.color, row[r], kColor + 8 + pair, 0, 0);
    const float x = point[r].x, y = point[r].y, z = point[r].z;
    const uint32_t xy = Operand<half>::pack(x, y), z1 = Operand<half>::pack(z, 1.0f);
    const float2 xy_kept = Operand<half>::unpack(xy), z1_kept = Operand<half>::unpack(z1);
    const uint32_t xy_low = Operand<half>::pack(x - xy_kept.x, y - xy_kept.y);
    const uint32_t z_low = Operand<half>::pack(z - z1_kept.x, 0.0f);
    const uint32_t mine = pair == 0 ? xy : pair == 2 ? z1 : pair == 4 ? xy_low : z_low;
    memcpy(buffers.point + row[r] * Buffers::kPoint + pair, &mine, sizeof(mine));
  }
  Buffers::meet();

  // Gradient of the second phase: cos ⊙ (colour gradients · Wc + density gradient · v).
  uint32_t color_high[kColorDepth][4], color_low[kColorDepth][4] = {};
#pragma unroll
  for (int c = 0; c < kColorDepth; c++) {
    load_rows<kNarrow>(color_high[c], buffers.color, first_row, 16 * c, lane);
    if (kAccurate) load_rows<kNarrow>(color_low[c], buffers.color, Buffers::kRows + first_row, 16 * c, lane);
  }
  const float of_colors =
      buffers.scales[kScaleOfAll] / buffers.scales[kScaleOfColors];  // from the colours' scale to that of all
  uint32_t second[kReload ? 1 : kDepth][4];
#pragma unroll
  for (int k = 0; k < kSteps; k++) {
    float grad[2][4] = {};
    const int column = own + 16 * k;
#pragma unroll
    for (int c = 0; c < kColorDepth; c++)
      multiply_step_transposed<kAccurate, kRow>(grad, color_high[c], color_low[c], weights.color, kColor * kRow, 16 * c,
                                                column, lane);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int channel = column + 8 * n + pair;
      const float2 v = *reinterpret_cast<const float2*>(weights.density + channel);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float2 slope = Buffers::template get<kWide>(buffers.second, row[r], channel);
        const float x = fmaf(of_colors, grad[n][2 * r], sample[r].density * v.x) * slope.x;
        const float y = fmaf(of_colors, grad[n][2 * r + 1], sample[r].density * v.y) * slope.y;
        uint32_t high, low = 0;
        pack_activations<kAccurate>(clamp_to_half(x), clamp_to_half(y), high, low);
        if (!kReload) second[kReload ? 0 : k][2 * n + r] = high;
        Buffers::template put<kWide>(buffers.second, row[r], channel, high, low);
      }
    }
  }
  Buffers::meet();

  // Gradient of the first phase: cos ⊙ (gradient of the second phase · W2), the phase computed once more.
  float3 grad_point[2] = {};
#pragma unroll 1
  for (int column = own; column < own + 16 * kSteps; column += 16) {
    float grad[2][4] = {};
#pragma unroll
    for (int k = 0; k < kDepth; k++) {
      uint32_t high[4], low[4] = {};
      if (kReload) {
        load_rows<kWide>(high, buffers.second, first_row, 16 * k, lane);
        if (kAccurate) load_rows<kWide>(low, buffers.second, Buffers::kRows + first_row, 16 * k, lane);
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) high[i] = second[kReload ? 0 : k][i];
      }
      multiply_step_transposed<kAccurate, kRow>(grad, high, low, weights.second, kWidth * kRow, 16 * k, column, lane);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int channel = column + 8 * n + pair;
      const float4 a = weights.first[channel], b = weights.first[channel + 1];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float3 p = point[r];
        const float x = grad[n][2 * r] * cosine<kAccurate>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w))));
        const float y = grad[n][2 * r + 1] * cosine<kAccurate>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w))));
        uint32_t high, low = 0;
        pack_activations<kAccurate>(clamp_to_half(x), clamp_to_half(y), high, low);
        Buffers::template put<kWide>(buffers.first, row[r], channel, high, low);
        if (!kRayGradients) continue;
        grad_point[r].x = fmaf(x, a.x, fmaf(y, b.x, grad_point[r].x));
        grad_point[r].y = fmaf(x, a.y, fmaf(y, b.y, grad_point[r].y));
        grad_point[r].z = fmaf(x, a.z, fmaf(y, b.z, grad_point[r].z));
      }
    }
  }
#pragma unroll
  for (int r = 0; r < (kRayGradients ? 2 : 0); r++) {
    const float3 p = point[r];
    if (layers.ball.radius != 0.0f && pair == 0 && share == 0) {  // once a row: lanes and shares are added up
      const float norm = sqrtf(p.x * p.x + p.y * p.y + p.z * p.z);
      const float slope = norm > 0.0f ? -sample[r].density * layers.ball.density / (layers.ball.radius * norm) : 0.0f;
      grad_point[r].x = fmaf(slope, p.x, grad_point[r].x);
      grad_point[r].y = fmaf(slope, p.y, grad_point[r].y);
      grad_point[r].z = fmaf(slope, p.z, grad_point[r].z);
    }
    ray.grad_origin.x += grad_point[r].x;
    ray.grad_origin.y += grad_point[r].y;
    ray.grad_origin.z += grad_point[r].z;
    ray.grad_direction.x = fmaf(depth[r], grad_point[r].x, ray.grad_direction.x);
    ray.grad_direction.y = fmaf(depth[r], grad_point[r].y, ray.grad_direction.y);
    ray.grad_direction.z = fmaf(depth[r], grad_point[r].z, ray.grad_direction.z);
  }
}

}  // namespace cips3d

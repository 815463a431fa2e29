// The gradients at single samples of rays: the field evaluated once more, the compositing and then layer after layer
// differentiated.
#pragma once
#include "layer_sums.h"
#include "ray_gradients.h"

namespace cips3d {

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

// From the phases of a warp's colours, [8 kColorSteps] in the order of matrix instructions, and the densities of the
// lanes' own channels to the gradients of both samples, and to those of the phases, which it leaves in the buffers with
// what the sums need besides.
template <int kColorSteps, bool kAccurate, class Weights, class Buffers>
__device__ __forceinline__ void differentiate_colors(
    SampleGradient (&sample)[2], float (&color)[8 * kColorSteps], const float (&density)[2], const float3 (&point)[2],
    const Weights& weights, const Buffers& buffers, RayState& ray, const SavedRays& saved, const BackwardSettings& s,
    const FieldLayers& layers, const float2 (&grad_color)[2 * kColorSteps], const SampleInputs& inputs, int later,
    const int (&row)[2], int share, int lane) {
  constexpr int kNarrow = Buffers::kNarrow, kColor = Buffers::kColors;
  const int pair = lane % 4 * 2, own_color = 16 * kColorSteps * share;
  // The density, and the gradient of a sample's weight through its colours, Σ g_c colour_c: first of the lane's own
  // channels, then of all of them.
  float totals[4] = {density[0], density[1], 0.0f, 0.0f};
#pragma unroll
  for (int n = 0; n < 2 * kColorSteps; n++) {
    const int channel = own_color + 8 * n + pair;
    const float2 bias = *reinterpret_cast<const float2*>(weights.color_bias + channel);
    const float2 grad = grad_color[n];
    float* phase = color + 4 * n;
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
  float raw[2];
#pragma unroll
  for (int r = 0; r < 2; r++) raw[r] = totals[r] + weights.density[Buffers::kWidths] + layers.ball.at(point[r]);
  differentiate_compositing(sample, ray, saved, s, later, inputs, raw, {totals[2], totals[3]});
#pragma unroll
  for (int r = 0; r < 2; r++) {
    sample[r].weight *= buffers.scales[kScaleOfColors];
    sample[r].density = clamp_to_half(sample[r].density * buffers.scales[kScaleOfAll]);
  }

  // Gradients of the colour phases, and behind them those of the densities.
#pragma unroll
  for (int n = 0; n < 2 * kColorSteps; n++) {
    const int channel = own_color + 8 * n + pair;
    const float2 grad = grad_color[n];
    const float* phase = color + 4 * n;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      uint32_t high, low = 0;
      const float x = cosine<kAccurate>(phase[2 * r]) * sample[r].weight * grad.x;
      const float y = cosine<kAccurate>(phase[2 * r + 1]) * sample[r].weight * grad.y;
      pack_gradients<kAccurate>(x, y, high, low);
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
    memcpy(buffers.point + Buffers::template at<Buffers::kPoint>(row[r], pair), &mine, sizeof(mine));
  }
}

// What the gradients of a lane's two points are for those of its ray; the density's ball comes in once a row, since
// lanes and warps are added up.
__device__ __forceinline__ void add_point_gradients(RayState& ray, float3 (&grad_point)[2], const float3 (&point)[2],
                                                    const SampleGradient (&sample)[2], const Ball& ball,
                                                    bool has_ball) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float3 p = point[r];
    if (ball.radius != 0.0f && has_ball) {
      const float norm = sqrtf(p.x * p.x + p.y * p.y + p.z * p.z);
      const float slope = norm > 0.0f ? -sample[r].density * ball.density / (ball.radius * norm) : 0.0f;
      grad_point[r].x = fmaf(slope, p.x, grad_point[r].x);
      grad_point[r].y = fmaf(slope, p.y, grad_point[r].y);
      grad_point[r].z = fmaf(slope, p.z, grad_point[r].z);
    }
    ray.grad_origin.x += grad_point[r].x;
    ray.grad_origin.y += grad_point[r].y;
    ray.grad_origin.z += grad_point[r].z;
    ray.grad_direction.x = fmaf(ray.depth[r], grad_point[r].x, ray.grad_direction.x);
    ray.grad_direction.y = fmaf(ray.depth[r], grad_point[r].y, ray.grad_direction.y);
    ray.grad_direction.z = fmaf(ray.depth[r], grad_point[r].z, ray.grad_direction.z);
  }
}

// What a lane computes of the field and its gradients at two samples of one of eight rays: of every layer the channels
// of its warp, which has the `share`th part of them. The samples are rows of the buffers, to which every layer writes
// what the next one and the sums need; between layers the warps of a tile meet.
template <bool kRayGradients, int kWidth, int kColor, bool kAccurate, class Buffers>
struct StepGradients {
  using Weights = FieldWeights<kWidth, kColor, kAccurate>;
  static constexpr int kRow = Weights::kRow, kWide = Buffers::kWide, kNarrow = Buffers::kNarrow;
  static constexpr int kDepth = kWidth / 16, kColorDepth = kColor / 16;  // steps of a product's sum
  static constexpr int kSteps = kDepth / Buffers::kSharers,
                       kColorSteps = kColorDepth / Buffers::kSharers;  // own columns
  // Whether operands A are read from the buffers again for every product: there are no registers for them besides the
  // low parts or the rays' gradients, and a warp that shares its tile has not made all of them itself.
  static constexpr bool kReload = kAccurate || kRayGradients || Buffers::kSharers > 1;
  // Strips of 16 channels that are computed at a time: one matrix instruction in flight an accumulator, a strip has two
  // of them, and four hide each other's latency.
  static constexpr int kStrips = kSteps % 2 == 0 && !kAccurate ? 2 : 1;
  using Kept = uint32_t[kReload ? 1 : kDepth][4];  // operands A of all steps, without low parts

  const Weights& weights;
  const Buffers& buffers;
  int first_row, lane;
  int pair;            // the first of the lane's two channels among every eight
  int own, own_color;  // the first of the warp's channels in the sine layers, and of its colours
  int row[2];
  float3 point[2];

  __device__ __forceinline__ StepGradients(const Weights& weights, const Buffers& buffers, const RayState& ray,
                                           int first_row, int share, int lane)
      : weights(weights),
        buffers(buffers),
        first_row(first_row),
        lane(lane),
        pair(lane % 4 * 2),
        own(16 * kSteps * share),
        own_color(16 * kColorSteps * share) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      row[r] = first_row + lane / 4 + 8 * r;
      point[r] = make_float3(fmaf(ray.depth[r], ray.direction.x, ray.origin.x),
                             fmaf(ray.depth[r], ray.direction.y, ray.origin.y),
                             fmaf(ray.depth[r], ray.direction.z, ray.origin.z));
    }
  }

  // Step k of an operand A with columns of a buffer.
  template <int kColumns>
  __device__ __forceinline__ void load(uint32_t (&high)[4], uint32_t (&low)[4], const half* buffer, int k) const {
    Buffers::template load_rows<kColumns>(high, buffer, first_row, 16 * k, lane);
    if (kAccurate) Buffers::template load_rows<kColumns>(low, buffer, Buffers::kRows + first_row, 16 * k, lane);
  }
  __device__ __forceinline__ void load(uint32_t (&high)[4], uint32_t (&low)[4], const half* buffer, const Kept& kept,
                                       int k) const {
    if (kReload) {
      load<kWide>(high, low, buffer, k);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) high[i] = kept[kReload ? 0 : k][i];
    }
  }

  // In all of these weights are read before anything is stored: no compiler moves a load across a store to memory that
  // could be the same, and the load would be waited for.

  __device__ __forceinline__ void first_layer(Kept& h1) const {
    float4 next[2] = {weights.first[own + pair], weights.first[own + pair + 1]};
#pragma unroll
    for (int k = 0; k < kSteps; k++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int channel = own + 16 * k + 8 * e + pair, behind = min(channel + 8, kWidth - 2);
        const float4 a = next[0], b = next[1];
        next[0] = weights.first[behind], next[1] = weights.first[behind + 1];
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
  }

  // The second layer's sines and cosines, and what its channels add to the density.
  __device__ __forceinline__ void second_layer(float (&density)[2], const Kept& h1) const {
#pragma unroll 1
    for (int column = own; column < own + 16 * kSteps; column += 16 * kStrips) {
      float phase[kStrips][1][2][4] = {};
#pragma unroll
      for (int k = 0; k < kDepth; k++) {
        uint32_t high[1][4], low[1][4] = {};
        load(high[0], low[0], buffers.h1, h1, k);
#pragma unroll
        for (int strip = 0; strip < kStrips; strip++)
          multiply_step<1, kAccurate, kRow>(phase[strip], high, low, weights.second, kWidth * kRow, column + 16 * strip,
                                            16 * k, lane);
      }
      float2 bias[2 * kStrips], v[2 * kStrips];
#pragma unroll
      for (int n = 0; n < 2 * kStrips; n++) {
        bias[n] = *reinterpret_cast<const float2*>(weights.second_bias + column + 8 * n + pair);
        v[n] = *reinterpret_cast<const float2*>(weights.density + column + 8 * n + pair);
      }
#pragma unroll
      for (int n = 0; n < 2 * kStrips; n++) {
        const int channel = column + 8 * n + pair;
        const float (&of_channels)[4] = phase[n / 2][0][n % 2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float px = of_channels[2 * r] + bias[n].x, py = of_channels[2 * r + 1] + bias[n].y;
          const float x = sine<kAccurate>(px), y = sine<kAccurate>(py);
          density[r] = fmaf(x, v[n].x, fmaf(y, v[n].y, density[r]));
          uint32_t high, low = 0;
          pack_activations<kAccurate>(x, y, high, low);
          Buffers::template put<kWide>(buffers.h2, row[r], channel, high, low);
          pack_activations<kAccurate>(cosine<kAccurate>(px), cosine<kAccurate>(py), high, low);
          Buffers::template put<kWide>(buffers.second, row[r], channel, high, low);
        }
      }
    }
  }

  // The colours' phases, in the order of matrix instructions, without their bias.
  __device__ __forceinline__ void color_layer(float (&color)[8 * kColorSteps]) const {
#pragma unroll 2
    for (int k = 0; k < kDepth; k++) {
      uint32_t high[1][4], low[1][4] = {};
      load<kWide>(high[0], low[0], buffers.h2, k);
#pragma unroll
      for (int c = 0; c < kColorSteps; c++)
        multiply_step<1, kAccurate, kRow>(*reinterpret_cast<float (*)[1][2][4]>(color + 8 * c), high, low,
                                          weights.color, kColor * kRow, own_color + 16 * c, 16 * k, lane);
    }
  }

  // Gradient of the second phase: cos ⊙ (colour gradients · Wc + density gradient · v).
  __device__ __forceinline__ void second_phase(Kept& second, const SampleGradient (&sample)[2]) const {
    uint32_t color_high[kColorDepth][4], color_low[kColorDepth][4] = {};
#pragma unroll
    for (int c = 0; c < kColorDepth; c++) load<kNarrow>(color_high[c], color_low[c], buffers.color, c);
    const float of_colors =
        buffers.scales[kScaleOfAll] / buffers.scales[kScaleOfColors];  // from the colours' scale to that of all
#pragma unroll
    for (int k = 0; k < kSteps; k += kStrips) {
      float grad[kStrips][2][4] = {};
      const int column = own + 16 * k;
      float2 v[2 * kStrips], slope[2 * kStrips][2];
#pragma unroll
      for (int n = 0; n < 2 * kStrips; n++) {
        v[n] = *reinterpret_cast<const float2*>(weights.density + column + 8 * n + pair);
#pragma unroll
        for (int r = 0; r < 2; r++)
          slope[n][r] = Buffers::template get<kWide>(buffers.second, row[r], column + 8 * n + pair);
      }
#pragma unroll
      for (int c = 0; c < kColorDepth; c++)
#pragma unroll
        for (int strip = 0; strip < kStrips; strip++)
          multiply_step_transposed<kAccurate, kRow>(grad[strip], color_high[c], color_low[c], weights.color,
                                                    kColor * kRow, 16 * c, column + 16 * strip, lane);
#pragma unroll
      for (int n = 0; n < 2 * kStrips; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float (&of_channels)[4] = grad[n / 2][n % 2];
          const float x = fmaf(of_colors, of_channels[2 * r], sample[r].density * v[n].x) * slope[n][r].x;
          const float y = fmaf(of_colors, of_channels[2 * r + 1], sample[r].density * v[n].y) * slope[n][r].y;
          uint32_t high, low = 0;
          pack_gradients<kAccurate>(x, y, high, low);
          if (!kReload) second[kReload ? 0 : k + n / 2][2 * (n % 2) + r] = high;
          Buffers::template put<kWide>(buffers.second, row[r], column + 8 * n + pair, high, low);
        }
    }
  }

  // Gradient of the first phase: cos ⊙ (gradient of the second phase · W2), the phase computed once more.
  __device__ __forceinline__ void first_phase(float3 (&grad_point)[2], const Kept& second) const {
#pragma unroll 1
    for (int column = own; column < own + 16 * kSteps; column += 16 * kStrips) {
      float grad[kStrips][2][4] = {};
#pragma unroll
      for (int k = 0; k < kDepth; k++) {
        uint32_t high[4], low[4] = {};
        load(high, low, buffers.second, second, k);
#pragma unroll
        for (int strip = 0; strip < kStrips; strip++)
          multiply_step_transposed<kAccurate, kRow>(grad[strip], high, low, weights.second, kWidth * kRow, 16 * k,
                                                    column + 16 * strip, lane);
      }
      float4 first[2 * kStrips][2];
#pragma unroll
      for (int n = 0; n < 2 * kStrips; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) first[n][i] = weights.first[column + 8 * n + pair + i];
#pragma unroll
      for (int n = 0; n < 2 * kStrips; n++) {
        const float4 a = first[n][0], b = first[n][1];
        const float (&of_channels)[4] = grad[n / 2][n % 2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float3 p = point[r];
          const float x = of_channels[2 * r] * cosine<kAccurate>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w))));
          const float y =
              of_channels[2 * r + 1] * cosine<kAccurate>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w))));
          uint32_t high, low = 0;
          pack_gradients<kAccurate>(x, y, high, low);
          Buffers::template put<kWide>(buffers.first, row[r], column + 8 * n + pair, high, low);
          if (!kRayGradients) continue;
          grad_point[r].x = fmaf(x, a.x, fmaf(y, b.x, grad_point[r].x));
          grad_point[r].y = fmaf(x, a.y, fmaf(y, b.y, grad_point[r].y));
          grad_point[r].z = fmaf(x, a.z, fmaf(y, b.z, grad_point[r].z));
        }
      }
    }
  }
};

// Two samples of eight rays: row g is the later, row g + 8 the earlier one of ray g. Recomputes the field,
// differentiates the compositing and then layer after layer, and leaves in the buffers what the sums need. A warp has
// the `share`th part of every layer's channels; the rays are with all warps of a tile.
template <bool kRayGradients, int kWidth, int kColor, bool kAccurate, class Buffers>
__device__ __forceinline__ void differentiate_samples(const FieldWeights<kWidth, kColor, kAccurate>& weights,
                                                      const Buffers& buffers, RayState& ray, const SavedRays& saved,
                                                      const OutputGradients& gradients, const BackwardSettings& s,
                                                      const FieldLayers& layers, int later, int first_row, int share,
                                                      int lane) {
  using Step = StepGradients<kRayGradients, kWidth, kColor, kAccurate, Buffers>;
  const Step step(weights, buffers, ray, first_row, share, lane);
  typename Step::Kept h1;
  step.first_layer(h1);
  Buffers::meet();
  float density[2] = {0.0f, 0.0f};
  step.second_layer(density, h1);
  Buffers::meet();

  constexpr int kColorSteps = Step::kColorSteps;
  float2 grad_color[2 * kColorSteps];
  const float* grad_colors = gradients.colors + ray.index * s.color_row;
#pragma unroll
  for (int n = 0; n < 2 * kColorSteps; n++) {
    const int channel = step.own_color + 8 * n + step.pair;
    grad_color[n] =
        channel < layers.color ? *reinterpret_cast<const float2*>(grad_colors + channel) : make_float2(0, 0);
  }
  const SampleInputs inputs = load_inputs(ray, saved, gradients, s, later);
  float color[8 * kColorSteps] = {};
  step.color_layer(color);
  SampleGradient sample[2];
  differentiate_colors<kColorSteps, kAccurate>(sample, color, density, step.point, weights, buffers, ray, saved, s,
                                               layers, grad_color, inputs, later, step.row, share, lane);
  Buffers::meet();

  typename Step::Kept second;
  step.second_phase(second, sample);
  Buffers::meet();
  float3 grad_point[2] = {};
  step.first_phase(grad_point, second);
  if (kRayGradients)
    add_point_gradients(ray, grad_point, step.point, sample, layers.ball, share == 0 && step.pair == 0);
  ray.depth_behind = ray.depth[1];
  load_depths(ray, saved, s, later - 2);
}

}  // namespace cips3d

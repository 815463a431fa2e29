// Gradients of render_rays by recomputation: from a ray's depths and transmittances the field is evaluated once more,
// two samples of eight rays a warp, from the back of the rays to the front, so that the sum over what lies behind a
// sample is a running one. Only sums over samples leave the chip: of every layer G = Σ du xᵀ and s = Σ du, for the
// phase's gradient u and the layer's input x, one partial sum a block, which a second kernel adds up in a fixed order.
#include "ray_samples.h"
#include "siren_field.h"

namespace cips3d {
namespace {

constexpr int kWarps = 8;
constexpr int kBlockThreads = 32 * kWarps;
constexpr float kLargestHalf = 65504.0f;

// Multiprocessors of other architectures have less shared memory than the kernel takes: there it is left empty, which
// saves most of its compile time. render_rays_backward_fits() keeps it from being launched.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ == 1200)
constexpr bool kHasRoom = false;
#else
constexpr bool kHasRoom = true;
#endif

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
  const float* scale;       // [1] a power of two that brings the gradients of colours into float16's range
};

struct BackwardSettings {
  int64_t images, rays;
  int samples;
  bool softplus, last_back;
};

// The gradients of one image's layers, as one array of floats, the second layer's weight [width, width] first.
struct GradientLayout {
  int width, color;
  __host__ __device__ int second_bias() const { return width * width; }                  // [width]
  __host__ __device__ int color_weight() const { return second_bias() + width; }         // [color, width]
  __host__ __device__ int color_bias() const { return color_weight() + color * width; }  // [color]
  __host__ __device__ int density_weight() const { return color_bias() + color; }        // [width]
  __host__ __device__ int density_bias() const { return density_weight() + width; }      // [1]
  __host__ __device__ int first() const { return density_bias() + 1; }                   // [width, 3]
  __host__ __device__ int first_bias() const { return first() + 3 * width; }             // [width]
  __host__ __device__ int size() const { return first_bias() + width; }
};

// What the samples of a step leave in shared memory for the sums, as rows of halves; in the accurate mode twice, high
// and low parts.
template <int kWidth, int kColor, bool kAccurate>
struct StepBuffers {
  static constexpr int kParts = kAccurate ? 2 : 1;
  static constexpr int kRowWarps = kAccurate ? 2 : kWarps;  // warps with samples of their own
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kWide = kWidth + kPadHalves, kNarrow = kColor + 16 + kPadHalves, kPoint = 8 + kPadHalves;

  half* h1;      // [kParts, kRows, kWide] the second layer's input
  half* h2;      // [kParts, kRows, kWide] the colour layer's and the density's input
  half* second;  // [kParts, kRows, kWide] first the cosine of the second phase, then the gradient of that phase
  half* first;   // [kParts, kRows, kWide] gradient of the first phase
  half* color;   // [kParts, kRows, kNarrow] gradient of the colour phase; column kColor: of the raw density
  half* point;   // [kRows, kPoint] x, y, z, 1, and what the rounding of x, y, z left over

  static constexpr size_t bytes() {
    return 4 * shared_bytes<half>(kParts * kRows * kWide) + shared_bytes<half>(kParts * kRows * kNarrow) +
           shared_bytes<half>(kRows * kPoint);
  }
  __device__ __forceinline__ explicit StepBuffers(SharedArrays& shared)
      : h1(shared.take<half>(kParts * kRows * kWide)),
        h2(shared.take<half>(kParts * kRows * kWide)),
        second(shared.take<half>(kParts * kRows * kWide)),
        first(shared.take<half>(kParts * kRows * kWide)),
        color(shared.take<half>(kParts * kRows * kNarrow)),
        point(shared.take<half>(kRows * kPoint)) {}

  // Writes a pair of neighbouring columns of a row.
  template <int kRow>
  __device__ __forceinline__ static void put(half* buffer, int row, int column, uint32_t high, uint32_t low) {
    memcpy(buffer + row * kRow + column, &high, sizeof(high));
    if (kAccurate) memcpy(buffer + (kRows + row) * kRow + column, &low, sizeof(low));
  }
  template <int kRow>
  __device__ __forceinline__ static float2 get(const half* buffer, int row, int column) {
    uint32_t pair;
    memcpy(&pair, buffer + row * kRow + column, sizeof(pair));
    float2 value = Operand<half>::unpack(pair);
    if (kAccurate) {
      memcpy(&pair, buffer + (kRows + row) * kRow + column, sizeof(pair));
      const float2 low = Operand<half>::unpack(pair);
      value.x += low.x;
      value.y += low.y;
    }
    return value;
  }
};

[[maybe_unused]] __device__ __forceinline__ float clamp_to_half(float x) {
  return fminf(fmaxf(x, -kLargestHalf), kLargestHalf);
}

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

[[maybe_unused]] __device__ __forceinline__ SampleGradient differentiate_sample(RayState& ray, const SavedRays& saved,
                                                                                const OutputGradients& gradients,
                                                                                const BackwardSettings& s, int i,
                                                                                float raw, float grad_of_colors,
                                                                                float depth) {
  if (!ray.there || i >= s.samples) return {0.0f, 0.0f};
  const int64_t at = ray.index * s.samples + i;
  if (saved.noise != nullptr) raw += saved.noise[at];
  const bool last = i + 1 == s.samples;
  const float delta = last ? kLastDelta : saved.depths[at + 1] - depth;
  const float density = activated(raw, s.softplus), slope = activation_slope(raw, s.softplus);
  const float passed = expf(-delta * density), alpha = 1.0f - passed, light = saved.transmittance[at];
  float grad = grad_of_colors + ray.grad_depth * depth + ray.grad_sum;
  if (gradients.weights != nullptr) grad += gradients.weights[at];
  if (s.last_back) {
    // The last weight is 1 minus the others: it takes no gradient of its own and its gradient goes off the others'.
    if (last) {
      ray.last_gradient = grad;
      return {saved.weights[at], 0.0f};
    }
    grad -= ray.last_gradient;
  }
  const float weight = alpha * light;
  const float grad_alpha = grad * light - ray.behind / (1.0f - alpha + kTransmittanceFloor);
  ray.behind += grad * weight;
  return {weight, grad_alpha * delta * passed * slope};
}

// The sums over samples, spread over the warps of a block: a warp has 16 rows of the second layer's matrix (its part of
// the columns where the matrix has fewer than 8 such strips) and pairs of 8 columns of the colour layer's.
template <int kWidth, int kColor, bool kAccurate>
struct LayerSums {
  using Buffers = StepBuffers<kWidth, kColor, kAccurate>;
  static constexpr int kStrips = kWidth / 16;                          // of 16 rows or columns
  static constexpr int kSharers = kWarps / kStrips;                    // warps that share a strip of rows
  static constexpr int kSecond = (kStrips + kSharers - 1) / kSharers;  // strips of columns a warp
  static constexpr int kColorStrips = kColor / 16 + 1;                 // and one for the density
  static_assert(kStrips <= kWarps && kColorStrips <= kWarps, "one strip of rows a warp");

  float second[kSecond][2][4];
  float second_bias[4];
  float first[4];
  float color[kColorStrips][2][4];
  float color_bias[4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int k = 0; k < kSecond; k++)
#pragma unroll
      for (int i = 0; i < 8; i++) second[k][i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int k = 0; k < kColorStrips; k++)
#pragma unroll
      for (int i = 0; i < 8; i++) color[k][i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) second_bias[i] = first[i] = color_bias[i] = 0.0f;
  }

  // An operand A [16, 16] that is the transpose of rows `row` to row + 15, columns `column` to column + 15 of a buffer.
  template <int kRow>
  __device__ __forceinline__ static void load_transposed(uint32_t (&a)[4], const half* buffer, int row, int column,
                                                         int lane) {
    ldmatrix_x4_trans(a, buffer + (row + lane % 8 + lane / 16 * 8) * kRow + column + lane / 8 % 2 * 8);
  }
  // Two operands B [16, 8] side by side: rows `row` to row + 15, columns `column` to column + 15 of a buffer.
  template <int kRow>
  __device__ __forceinline__ static void load_pair(uint32_t (&b)[4], const half* buffer, int row, int column,
                                                   int lane) {
    ldmatrix_x4_trans(b, buffer + (row + lane % 16) * kRow + column + lane / 16 * 8);
  }
  __device__ __forceinline__ static void multiply_pair(float (&accumulator)[2][4], const uint32_t (&a)[4],
                                                       const uint32_t (&b)[4]) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const uint32_t pair[2] = {b[2 * n], b[2 * n + 1]};
      mma_m16n8k16_f16(accumulator[n], a, pair, accumulator[n]);
    }
  }

  // Adds a step's samples; all warps, between two barriers.
  __device__ __forceinline__ void add(const Buffers& buffers, int warp, int lane) {
    constexpr int kParts = Buffers::kParts, kRows = Buffers::kRows, kWide = Buffers::kWide;
    constexpr int kNarrow = Buffers::kNarrow;
    const int strip = warp % kStrips, share = warp / kStrips;
#pragma unroll 1
    for (int row = 0; row < kRows; row += 16) {
      uint32_t point[2];
      ldmatrix_x2_trans(point, buffers.point + (row + lane % 16) * Buffers::kPoint);
#pragma unroll
      for (int part = 0; part < kParts; part++) {  // of the gradient: high, low
        uint32_t a[4];
        load_transposed<kWide>(a, buffers.second + part * kRows * kWide, row, 16 * strip, lane);
        mma_m16n8k16_f16(second_bias, a, point, second_bias);
#pragma unroll
        for (int k = 0; k < kSecond; k++) {
          const int column = 16 * (share * kSecond + k);
          if (column >= kWidth) continue;
#pragma unroll
          for (int other = 0; other < kParts - part; other++) {  // low · low is below the rounding
            uint32_t b[4];
            load_pair<kWide>(b, buffers.h1 + other * kRows * kWide, row, column, lane);
            multiply_pair(second[k], a, b);
          }
        }
        load_transposed<kWide>(a, buffers.first + part * kRows * kWide, row, 16 * strip, lane);
        mma_m16n8k16_f16(first, a, point, first);
        if (warp < kColorStrips) {
          load_transposed<kNarrow>(a, buffers.color + part * kRows * kNarrow, row, 16 * warp, lane);
          mma_m16n8k16_f16(color_bias, a, point, color_bias);
        }
        if (warp < kStrips) {
          uint32_t b[kParts][4];
#pragma unroll
          for (int other = 0; other < kParts - part; other++)
            load_pair<kWide>(b[other], buffers.h2 + other * kRows * kWide, row, 16 * warp, lane);
#pragma unroll
          for (int k = 0; k < kColorStrips; k++) {
            load_transposed<kNarrow>(a, buffers.color + part * kRows * kNarrow, row, 16 * k, lane);
#pragma unroll
            for (int other = 0; other < kParts - part; other++) multiply_pair(color[k], a, b[other]);
          }
        }
      }
    }
  }

  // Writes the sums, divided by the scale, in `GradientLayout`.
  __device__ __forceinline__ void store(float* to, const GradientLayout& layout, float unscale, int warp, int lane) {
    const int strip = warp % kStrips, share = warp / kStrips;
    const int row = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int out = 16 * strip + row + i / 2 * 8;
#pragma unroll
      for (int k = 0; k < kSecond; k++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
          const int in = 16 * (share * kSecond + k) + 8 * n + pair + i % 2;
          if (out < layout.width && in < layout.width) to[out * layout.width + in] = unscale * second[k][n][i];
        }
      const int column = pair + i % 2;  // x, y, z, 1, low x, low y, low z, 0
      // The low parts of a point are four columns, that is two lanes, further on.
      const float low = __shfl_down_sync(~0u, first[i], 2);
      if (share == 0 && out < layout.width) {
        if (column < 3) to[layout.first() + 3 * out + column] = unscale * (first[i] + low);
        if (column == 3) to[layout.first_bias() + out] = unscale * first[i];
        if (column == 3) to[layout.second_bias() + out] = unscale * second_bias[i];
      }
      const int channel = 16 * warp + row + i / 2 * 8;
      if (warp < kColorStrips && column == 3) {
        if (channel < layout.color) to[layout.color_bias() + channel] = unscale * color_bias[i];
        if (channel == kColor) to[layout.density_bias()] = unscale * color_bias[i];
      }
#pragma unroll
      for (int k = 0; k < kColorStrips; k++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
          const int of = 16 * k + row + i / 2 * 8, in = 16 * warp + 8 * n + pair + i % 2;
          if (warp >= kStrips || in >= layout.width) continue;
          if (of < layout.color) to[layout.color_weight() + of * layout.width + in] = unscale * color[k][n][i];
          if (of == kColor) to[layout.density_weight() + in] = unscale * color[k][n][i];
        }
    }
  }
};

// An operand A [16, 16] of rows `row` to row + 15 of a buffer, columns `column` to column + 15, that the warp has
// written.
template <int kRow>
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], const half* buffer, int row, int column, int lane) {
  ldmatrix_x4(a, buffer + (row + lane % 16) * kRow + column + lane / 16 * 8);
}

// Two samples of eight rays: row g is the later, row g + 8 the earlier one of ray g. Recomputes the field,
// differentiates the compositing and then layer after layer, and leaves in the buffers what the sums need.
template <int kWidth, int kColor, bool kAccurate, bool kRayGradients>
__device__ __forceinline__ void differentiate_samples(const FieldWeights<kWidth, kColor, kAccurate>& weights,
                                                      const StepBuffers<kWidth, kColor, kAccurate>& buffers,
                                                      RayState& ray, const SavedRays& saved,
                                                      const OutputGradients& gradients, const BackwardSettings& s,
                                                      const FieldLayers& layers, float scale, int later, int first_row,
                                                      int lane) {
  const int colors = layers.color;
  using Weights = FieldWeights<kWidth, kColor, kAccurate>;
  using Buffers = StepBuffers<kWidth, kColor, kAccurate>;
  constexpr int kRow = Weights::kRow, kWide = Buffers::kWide, kNarrow = Buffers::kNarrow;
  constexpr int kSteps = kWidth / 16, kColorSteps = kColor / 16;
  // Whether operands A are read from the buffers again for every product: there are no registers for them besides the
  // low parts or the rays' gradients.
  constexpr bool kReload = kAccurate || kRayGradients;
  const int pair = lane % 4 * 2;
  const int row[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
  float depth[2];
  float3 point[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = min(later - r, s.samples - 1);
    depth[r] = saved.depths[ray.index * s.samples + i];
    point[r] = make_float3(fmaf(depth[r], ray.direction.x, ray.origin.x), fmaf(depth[r], ray.direction.y, ray.origin.y),
                           fmaf(depth[r], ray.direction.z, ray.origin.z));
  }

  uint32_t h1[kReload ? 1 : kSteps][4];
#pragma unroll
  for (int k = 0; k < kSteps; k++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int channel = 16 * k + 8 * e + pair;
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
  __syncwarp();

  float color[1][2 * kColorSteps][4] = {};
  float density[2] = {0.0f, 0.0f};
#pragma unroll 1
  for (int step = 0; step < kSteps; step++) {
    float phase[1][2][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      uint32_t high[1][4], low[1][4] = {};
      if (kReload) {
        load_rows<kWide>(high[0], buffers.h1, first_row, 16 * k, lane);
        if (kAccurate) load_rows<kWide>(low[0], buffers.h1, Buffers::kRows + first_row, 16 * k, lane);
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) high[0][i] = h1[kReload ? 0 : k][i];
      }
      multiply_step<1, kAccurate, kRow>(phase, high, low, weights.second, kWidth * kRow, 16 * step, 16 * k, lane);
    }
    uint32_t high[1][4], low[1][4] = {};
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int channel = 16 * step + 8 * n + pair;
      const float2 bias = *reinterpret_cast<const float2*>(weights.second_bias + channel);
      const float2 v = *reinterpret_cast<const float2*>(weights.density + channel);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float px = phase[0][n][2 * r] + bias.x, py = phase[0][n][2 * r + 1] + bias.y;
        const float x = sine<kAccurate>(px), y = sine<kAccurate>(py);
        density[r] = fmaf(x, v.x, fmaf(y, v.y, density[r]));
        pack_activations<kAccurate>(x, y, high[0][2 * n + r], low[0][2 * n + r]);
        Buffers::template put<kWide>(buffers.h2, row[r], channel, high[0][2 * n + r], low[0][2 * n + r]);
        uint32_t cosine_high, cosine_low = 0;
        pack_activations<kAccurate>(cosine<kAccurate>(px), cosine<kAccurate>(py), cosine_high, cosine_low);
        Buffers::template put<kWide>(buffers.second, row[r], channel, cosine_high, cosine_low);
      }
    }
#pragma unroll
    for (int c = 0; c < kColorSteps; c++) {
      float part[1][2][4];
#pragma unroll
      for (int i = 0; i < 8; i++) part[0][i / 4][i % 4] = color[0][2 * c + i / 4][i % 4];
      multiply_step<1, kAccurate, kRow>(part, high, low, weights.color, kColor * kRow, 16 * c, 16 * step, lane);
#pragma unroll
      for (int i = 0; i < 8; i++) color[0][2 * c + i / 4][i % 4] = part[0][i / 4][i % 4];
    }
  }

  // The gradient of a sample's weight through its colours, Σ g_c colour_c; four lanes have the channels of a row.
  float product[2] = {0.0f, 0.0f};
  const float* grad_colors = gradients.colors + ray.index * colors;
#pragma unroll
  for (int n = 0; n < 2 * kColorSteps; n++) {
    const int channel = 8 * n + pair;
    const float2 bias = *reinterpret_cast<const float2*>(weights.color_bias + channel);
    const float gx = channel < colors ? grad_colors[channel] : 0.0f;
    const float gy = channel + 1 < colors ? grad_colors[channel + 1] : 0.0f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      color[0][n][2 * r] += bias.x;
      color[0][n][2 * r + 1] += bias.y;
      product[r] =
          fmaf(gx, sine<kAccurate>(color[0][n][2 * r]), fmaf(gy, sine<kAccurate>(color[0][n][2 * r + 1]), product[r]));
    }
  }
  SampleGradient sample[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
      product[r] += __shfl_xor_sync(~0u, product[r], bit);
      density[r] += __shfl_xor_sync(~0u, density[r], bit);
    }
    sample[r] = differentiate_sample(ray, saved, gradients, s, later - r,
                                     density[r] + weights.density_bias + ball(layers, point[r]), product[r], depth[r]);
    sample[r].weight *= scale;
    sample[r].density = clamp_to_half(sample[r].density * scale);
  }

  // Gradients of the colour phases, as operands A and into the buffer, and behind them those of the densities.
  uint32_t color_high[kColorSteps][4], color_low[kColorSteps][4] = {};
#pragma unroll
  for (int n = 0; n < 2 * kColorSteps; n++) {
    const int channel = 8 * n + pair;
    const float gx = channel < colors ? grad_colors[channel] : 0.0f;
    const float gy = channel + 1 < colors ? grad_colors[channel + 1] : 0.0f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      uint32_t &high = color_high[n / 2][n % 2 * 2 + r], &low = color_low[n / 2][n % 2 * 2 + r];
      const float x = cosine<kAccurate>(color[0][n][2 * r]) * sample[r].weight * gx;
      const float y = cosine<kAccurate>(color[0][n][2 * r + 1]) * sample[r].weight * gy;
      pack_activations<kAccurate>(clamp_to_half(x), clamp_to_half(y), high, low);
      Buffers::template put<kNarrow>(buffers.color, row[r], channel, high, low);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
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

  // Gradient of the second phase: cos ⊙ (colour gradients · Wc + density gradient · v).
  uint32_t second[kReload ? 1 : kSteps][4];
#pragma unroll
  for (int k = 0; k < kSteps; k++) {
    float grad[2][4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float2 v = *reinterpret_cast<const float2*>(weights.density + 16 * k + 8 * n + pair);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        grad[n][2 * r] = sample[r].density * v.x;
        grad[n][2 * r + 1] = sample[r].density * v.y;
      }
    }
#pragma unroll
    for (int c = 0; c < kColorSteps; c++)
      multiply_step_transposed<kAccurate, kRow>(grad, color_high[c], color_low[c], weights.color, kColor * kRow, 16 * c,
                                                16 * k, lane);
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int channel = 16 * k + 8 * n + pair;
        const float2 slope = Buffers::template get<kWide>(buffers.second, row[r], channel);
        uint32_t high, low = 0;
        pack_activations<kAccurate>(clamp_to_half(grad[n][2 * r] * slope.x),
                                    clamp_to_half(grad[n][2 * r + 1] * slope.y), high, low);
        if (!kReload) second[kReload ? 0 : k][2 * n + r] = high;
        Buffers::template put<kWide>(buffers.second, row[r], channel, high, low);
      }
  }
  __syncwarp();

  // Gradient of the first phase: cos ⊙ (gradient of the second phase · W2), the phase computed once more.
  float3 grad_point[2] = {};
#pragma unroll 1
  for (int column = 0; column < kSteps; column++) {
    float grad[2][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      uint32_t high[4], low[4] = {};
      if (kReload) {
        load_rows<kWide>(high, buffers.second, first_row, 16 * k, lane);
        if (kAccurate) load_rows<kWide>(low, buffers.second, Buffers::kRows + first_row, 16 * k, lane);
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) high[i] = second[kReload ? 0 : k][i];
      }
      multiply_step_transposed<kAccurate, kRow>(grad, high, low, weights.second, kWidth * kRow, 16 * k, 16 * column,
                                                lane);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int channel = 16 * column + 8 * n + pair;
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
    if (layers.ball_radius != 0.0f && pair == 0) {  // once a row: its four lanes are added up
      const float norm = sqrtf(p.x * p.x + p.y * p.y + p.z * p.z);
      const float slope = norm > 0.0f ? -sample[r].density * layers.ball_density / (layers.ball_radius * norm) : 0.0f;
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

__device__ __forceinline__ float3 load3(const float* from) { return make_float3(from[0], from[1], from[2]); }

__device__ __forceinline__ void store_ray_gradient(float* to, float3 grad, float unscale, int lane) {
  float parts[3] = {grad.x, grad.y, grad.z};
#pragma unroll
  for (int k = 0; k < 3; k++) {
    parts[k] += __shfl_xor_sync(~0u, parts[k], 1);
    parts[k] += __shfl_xor_sync(~0u, parts[k], 2);
    if (to != nullptr && lane % 4 == 0) to[k] = unscale * parts[k];
  }
}

// Block (x, image): the xth part of an image's rays, and its sums.
template <int kWidth, int kColor, bool kAccurate, bool kRayGradients>
__global__ void __launch_bounds__(kBlockThreads, 1)
    render_rays_backward_kernel(const SavedRays saved, const OutputGradients gradients, const FieldLayers layers,
                                const BackwardSettings s,
                                float* __restrict__ partial,         // [B, blocks, GradientLayout]
                                float* __restrict__ grad_origins,    // [B, R, 3], with kRayGradients
                                float* __restrict__ grad_directions  // [B, R, 3]
    ) {
  if constexpr (!kHasRoom) {
    __trap();
  } else {
    using Buffers = StepBuffers<kWidth, kColor, kAccurate>;
    SharedArrays shared;
    FieldWeights<kWidth, kColor, kAccurate> weights(shared);
    const Buffers buffers(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t image = blockIdx.y;
    weights.load(layers, image);
    __syncthreads();

    LayerSums<kWidth, kColor, kAccurate> sums;
    sums.clear();
    const float scale = *gradients.scale, unscale = 1.0f / scale;
    constexpr int kRaysAStep = 8 * Buffers::kRowWarps;
    const int64_t tiles = ceil_div<int64_t>(s.rays, kRaysAStep), end = tiles * (blockIdx.x + 1) / gridDim.x;
    for (int64_t tile = tiles * blockIdx.x / gridDim.x; tile < end; tile++) {
      const int64_t mine = tile * kRaysAStep + warp * 8 + lane / 4;
      RayState ray = {};
      ray.there = warp < Buffers::kRowWarps && mine < s.rays;
      ray.index = image * s.rays + min(mine, s.rays - 1);
      ray.origin = load3(saved.origins + 3 * ray.index);
      ray.direction = load3(saved.directions + 3 * ray.index);
      ray.grad_sum = gradients.weight_sum == nullptr ? 0.0f : gradients.weight_sum[ray.index];
      ray.grad_depth = gradients.depth == nullptr ? 0.0f : gradients.depth[ray.index];
#pragma unroll 1
      for (int later = s.samples - 1 + s.samples % 2; later > 0; later -= 2) {
        if (warp < Buffers::kRowWarps)
          differentiate_samples<kWidth, kColor, kAccurate, kRayGradients>(weights, buffers, ray, saved, gradients, s,
                                                                          layers, scale, later, 16 * warp, lane);
        __syncthreads();
        sums.add(buffers, warp, lane);
        __syncthreads();
      }
      if (kRayGradients && warp < Buffers::kRowWarps) {
        store_ray_gradient(ray.there ? grad_origins + 3 * ray.index : nullptr, ray.grad_origin, unscale, lane);
        store_ray_gradient(ray.there ? grad_directions + 3 * ray.index : nullptr, ray.grad_direction, unscale, lane);
      }
    }
    const GradientLayout layout = {layers.width, layers.color};
    sums.store(partial + (image * gridDim.x + blockIdx.x) * layout.size(), layout, unscale, warp, lane);
  }
}

// sums[image] = Σ over blocks of partial[image, block], in index order.
__global__ void __launch_bounds__(256) add_blocks_kernel(const float* __restrict__ partial,  // [B, blocks, size]
                                                         float* __restrict__ sums,           // [B, size]
                                                         int blocks, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const float* from = partial + static_cast<int64_t>(blockIdx.y) * blocks * size + i;
  float sum = 0.0f;
  for (int block = 0; block < blocks; block++) sum += from[static_cast<int64_t>(block) * size];
  sums[static_cast<int64_t>(blockIdx.y) * size + i] = sum;
}

constexpr int kWidth = 128, kColor = 64;
template <bool kAccurate>
constexpr size_t kBackwardShared =
    FieldWeights<kWidth, kColor, kAccurate>::bytes() + StepBuffers<kWidth, kColor, kAccurate>::bytes();

template <bool kAccurate, bool kRayGradients>
void launch_backward(const SavedRays& saved, const OutputGradients& gradients, const FieldLayers& layers,
                     const BackwardSettings& s, float* partial, float* grad_origins, float* grad_directions,
                     float* sums, int64_t blocks, cudaStream_t stream) {
  constexpr size_t kShared = kBackwardShared<kAccurate>;
  if (kShared > device_limits().shared_block)
    throw std::invalid_argument("the backward needs " + std::to_string(kShared) + " bytes of shared memory");
  launch(render_rays_backward_kernel<kWidth, kColor, kAccurate, kRayGradients>,
         dim3(static_cast<unsigned>(blocks), blocks_for(s.images, 1)), dim3(kBlockThreads), kShared, stream, saved,
         gradients, layers, s, partial, grad_origins, grad_directions);
  const GradientLayout layout = {layers.width, layers.color};
  launch(add_blocks_kernel, dim3(blocks_for(layout.size(), 256), blocks_for(s.images, 1)), dim3(256), 0, stream,
         partial, sums, static_cast<int>(blocks), layout.size());
}

}  // namespace

int64_t render_rays_gradient_size(int width, int color) { return GradientLayout{width, color}.size(); }

bool render_rays_backward_fits(bool accurate) {
  return (accurate ? kBackwardShared<true> : kBackwardShared<false>) <= device_limits().shared_block;
}

void render_rays_backward(cudaStream_t stream, Pointer origins, Pointer directions, Pointer depths,
                          Pointer transmittance, Pointer weights, Pointer noise, Pointer grad_colors,
                          Pointer grad_weight_sum, Pointer grad_depth, Pointer grad_weights, Pointer scale,
                          Pointer first_weight, Pointer first_bias, Pointer second_weight, Pointer second_bias,
                          Pointer density_weight, Pointer density_bias, Pointer color_weight, Pointer color_bias,
                          Pointer partial, Pointer sums, Pointer grad_origins, Pointer grad_directions, int64_t images,
                          int64_t rays, int samples, int width, int color, double ball_density, double ball_radius,
                          int64_t blocks, bool softplus, bool last_back, bool accurate) {
  const SavedRays saved = {input<float>(origins),       input<float>(directions), input<float>(depths),
                           input<float>(transmittance), input<float>(weights),    input<float>(noise)};
  const OutputGradients gradients = {input<float>(grad_colors), input<float>(grad_weight_sum), input<float>(grad_depth),
                                     input<float>(grad_weights), input<float>(scale)};
  const FieldLayers layers = {input<float>(first_weight),
                              input<float>(first_bias),
                              input<float>(second_weight),
                              input<float>(second_bias),
                              input<float>(density_weight),
                              input<float>(density_bias),
                              input<float>(color_weight),
                              input<float>(color_bias),
                              width,
                              color,
                              static_cast<float>(ball_density),
                              static_cast<float>(ball_radius)};
  const BackwardSettings s = {images, rays, samples, softplus, last_back};
  auto run = accurate ? (grad_origins ? launch_backward<true, true> : launch_backward<true, false>)
                      : (grad_origins ? launch_backward<false, true> : launch_backward<false, false>);
  run(saved, gradients, layers, s, output<float>(partial), output<float>(grad_origins), output<float>(grad_directions),
      output<float>(sums), blocks, stream);
}

}  // namespace cips3d

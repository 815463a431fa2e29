// The NeRF branch's field on tensor cores: FiLM 3 -> W -> W, a density, a colour layer W -> C, for the samples of one
// image. Activations live in registers, weights in shared memory; nothing per sample goes to device memory.
//
// Layers are folded (gain and shift inside): h1 = sin(W1 p + b1), h2 = sin(W2 h1 + b2), density = v · h2 + c,
// colour = sin(Wc h2 + bc).
//
// The first layer is float32: its inputs are coordinates, and an error of a coordinate is an error of every phase
// behind it. For the others' operands see siren_arithmetic.h.
#pragma once
#include "ops.h"
#include "siren_arithmetic.h"

namespace cips3d {

// What the host gives: the folded layers of B images, contiguous float32.
struct FieldLayers {
  const float* first_weight;    // [B, width, 3]
  const float* first_bias;      // [B, width]
  const float* second_weight;   // [B, width, width]
  const float* second_bias;     // [B, width]
  const float* density_weight;  // [width]
  const float* density_bias;    // [1]
  const float* color_weight;    // [B, color, width]
  const float* color_bias;      // [B, color]
  int width, color;             // of the tensors; at most the kernel's kWidth and kColor
  Ball ball;
};

inline FieldLayers field_layers(Pointer first_weight, Pointer first_bias, Pointer second_weight, Pointer second_bias,
                                Pointer density_weight, Pointer density_bias, Pointer color_weight, Pointer color_bias,
                                int width, int color, double ball_density, double ball_radius) {
  return {input<float>(first_weight),
          input<float>(first_bias),
          input<float>(second_weight),
          input<float>(second_bias),
          input<float>(density_weight),
          input<float>(density_bias),
          input<float>(color_weight),
          input<float>(color_bias),
          width,
          color,
          {static_cast<float>(ball_density), static_cast<float>(ball_radius)}};
}

// One image's weights in shared memory. Widths below the kernel's are filled up with zeros, which change nothing: the
// sine of a phase of 0 is 0. With kCores matrices consist of the core matrices of warpgroup.h, [columns / 8, rows / 8],
// otherwise of padded rows.
template <int kWidth, int kColor, bool kAccurate, bool kCores = false>
struct FieldWeights {
  static constexpr int kRow = kWidth + (kCores ? 0 : kPadHalves);
  static constexpr int kParts = kAccurate ? 2 : 1;             // high, low
  static constexpr int kDensity = kWidth + (kCores ? 32 : 1);  // core matrices behind it start at lines of 128 bytes

  half* second;        // [kParts, kWidth, kRow]
  half* color;         // [kParts, kColor, kRow]
  float4* first;       // [kWidth] x, y, z, bias
  float* second_bias;  // [kWidth]
  float* density;      // [kDensity] weights, bias
  float* color_bias;   // [kColor]

  // Of all these. No function: what nvcc makes of one for the host, g++ 14 takes for used before it is there.
  static constexpr size_t kBytes = shared_bytes<float4>(kWidth) + shared_bytes<half>(kParts * kWidth * kRow) +
                                   shared_bytes<float>(kWidth) + shared_bytes<float>(kDensity) +
                                   shared_bytes<half>(kParts * kColor * kRow) + shared_bytes<float>(kColor);

  __device__ __forceinline__ explicit FieldWeights(SharedArrays& shared)
      : second(shared.take<half>(kParts * kWidth * kRow)),
        color(shared.take<half>(kParts * kColor * kRow)),
        first(shared.take<float4>(kWidth)),
        second_bias(shared.take<float>(kWidth)),
        density(shared.take<float>(kDensity)),
        color_bias(shared.take<float>(kColor)) {}

  // All threads of the block; a barrier must follow.
  __device__ void load(const FieldLayers& from, int64_t image) {
    const int width = from.width, colors = from.color;
    for (int i = threadIdx.x; i < kWidth; i += blockDim.x) {
      const bool there = i < width;
      const float* w = from.first_weight + (image * width + (there ? i : 0)) * 3;
      first[i] = there ? make_float4(w[0], w[1], w[2], from.first_bias[image * width + i]) : make_float4(0, 0, 0, 0);
      second_bias[i] = there ? from.second_bias[image * width + i] : 0.0f;
      density[i] = there ? from.density_weight[i] : 0.0f;
    }
    for (int i = threadIdx.x; i < kColor; i += blockDim.x)
      color_bias[i] = i < colors ? from.color_bias[image * colors + i] : 0.0f;
    load_matrix(second, kWidth, from.second_weight + image * width * width, width, width);
    load_matrix(color, kColor, from.color_weight + image * colors * width, colors, width);
    if (threadIdx.x == 0) density[kWidth] = *from.density_bias;
  }

 private:
  __device__ void load_matrix(half* to, int to_rows, const float* from, int rows, int columns) {
    for (int i = threadIdx.x; i < to_rows * kWidth; i += blockDim.x) {
      const int row = i / kWidth, column = i % kWidth;
      const float value = row < rows && column < columns ? from[row * columns + column] : 0.0f;
      const half high = __float2half_rn(value);
      const int at =
          kCores ? (column / 8 * (to_rows / 8) + row / 8) * 64 + row % 8 * 8 + column % 8 : row * kRow + column;
      to[at] = high;
      if (kAccurate) to[to_rows * kRow + at] = __float2half_rn(value - __half2float(high));
    }
  }
};

// Rows of an operand A in registers: kTiles tiles of 16 rows, kWidth / 16 steps of 16 columns.
template <int kWidth, int kTiles, bool kAccurate>
struct Activations {
  uint32_t high[kTiles][kWidth / 16][4];
  uint32_t low[kAccurate ? kTiles : 1][kAccurate ? kWidth / 16 : 1][4];
};

// The field at the 16 * kTiles samples of one warp. Lane 4 g + t brings the points of rows 16 m + g (index [m][0]) and
// 16 m + 8 + g ([m][1]), gets their raw densities, and hands pairs of their colour activations to
// store(m, r, channel, x, y), for channels 8 n + 2 t and the one behind.
template <int kWidth, int kColor, int kTiles, bool kAccurate, class Store>
__device__ __forceinline__ void evaluate_field(const FieldWeights<kWidth, kColor, kAccurate>& weights,
                                               const float3 (&points)[kTiles][2], float (&density)[kTiles][2], int lane,
                                               Store store) {
  using Weights = FieldWeights<kWidth, kColor, kAccurate>;
  constexpr int kSteps = kWidth / 16, kColorSteps = kColor / 16;
  const int pair = lane % 4 * 2;

  // First layer, in float32 and straight into the layout of an operand A.
  Activations<kWidth, kTiles, kAccurate> h1;
#pragma unroll
  for (int k = 0; k < kSteps; k++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float4 a = weights.first[16 * k + 8 * e + pair], b = weights.first[16 * k + 8 * e + pair + 1];
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float3 p = points[m][r];
          const float x = sine<kAccurate>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w))));
          const float y = sine<kAccurate>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w))));
          uint32_t low = 0;
          pack_activations<kAccurate>(x, y, h1.high[m][k][2 * e + r], low);
          if (kAccurate) h1.low[m][k][2 * e + r] = low;
        }
    }

  // Second layer, 16 channels at a time: they are one step of the colour layer's product, so that h2 never has to be
  // there as a whole.
  float color[kTiles][2 * kColorSteps][4] = {};
#pragma unroll
  for (int m = 0; m < kTiles; m++) density[m][0] = density[m][1] = 0.0f;
  constexpr int kStrips = 2 / kTiles;  // of 16 channels at a time: four accumulators hide each other's latency
#pragma unroll 1  // unrolled it would take minutes to compile and evict itself from the instruction cache
  for (int first = 0; first < kSteps; first += kStrips) {
    float phase[kStrips][kTiles][2][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      uint32_t high[kTiles][4], low[kTiles][4];
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          high[m][i] = h1.high[m][k][i];
          low[m][i] = kAccurate ? h1.low[kAccurate ? m : 0][kAccurate ? k : 0][i] : 0;
        }
#pragma unroll
      for (int strip = 0; strip < kStrips; strip++)
        multiply_step<kTiles, kAccurate, Weights::kRow>(phase[strip], high, low, weights.second, kWidth * Weights::kRow,
                                                        16 * (first + strip), 16 * k, lane);
    }
#pragma unroll
    for (int strip = 0; strip < kStrips; strip++) {
      const int step = first + strip;
      uint32_t high[kTiles][4], low[kTiles][4];
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const int channel = 16 * step + 8 * n + pair;
        const float2 bias = *reinterpret_cast<const float2*>(weights.second_bias + channel);
        const float2 v = *reinterpret_cast<const float2*>(weights.density + channel);
#pragma unroll
        for (int m = 0; m < kTiles; m++)
#pragma unroll
          for (int r = 0; r < 2; r++) {
            const float x = sine<kAccurate>(phase[strip][m][n][2 * r] + bias.x);
            const float y = sine<kAccurate>(phase[strip][m][n][2 * r + 1] + bias.y);
            density[m][r] = fmaf(x, v.x, fmaf(y, v.y, density[m][r]));
            pack_activations<kAccurate>(x, y, high[m][2 * n + r], low[m][2 * n + r]);
          }
      }
#pragma unroll
      for (int c = 0; c < kColorSteps; c++) {
        float (&part)[kTiles][2 * kColorSteps][4] = color;
        float accumulator[kTiles][2][4];
#pragma unroll
        for (int m = 0; m < kTiles; m++)
#pragma unroll
          for (int i = 0; i < 8; i++) accumulator[m][i / 4][i % 4] = part[m][2 * c + i / 4][i % 4];
        multiply_step<kTiles, kAccurate, Weights::kRow>(accumulator, high, low, weights.color, kColor * Weights::kRow,
                                                        16 * c, 16 * step, lane);
#pragma unroll
        for (int m = 0; m < kTiles; m++)
#pragma unroll
          for (int i = 0; i < 8; i++) part[m][2 * c + i / 4][i % 4] = accumulator[m][i / 4][i % 4];
      }
    }
  }

#pragma unroll
  for (int m = 0; m < kTiles; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {  // the four lanes of a row have a quarter of its channels each
      float sum = density[m][r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      density[m][r] = sum + weights.density[kWidth];
    }
#pragma unroll
  for (int n = 0; n < 2 * kColorSteps; n++) {
    const int channel = 8 * n + pair;
    const float2 bias = *reinterpret_cast<const float2*>(weights.color_bias + channel);
#pragma unroll
    for (int m = 0; m < kTiles; m++)
#pragma unroll
      for (int r = 0; r < 2; r++)
        store(m, r, channel, sine<kAccurate>(color[m][n][2 * r] + bias.x),
              sine<kAccurate>(color[m][n][2 * r + 1] + bias.y));
  }
}

}  // namespace cips3d

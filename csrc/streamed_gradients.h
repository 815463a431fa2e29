// Gradients of a streamed field at single samples, from what recorded_samples.h has kept of them: from the colour layer
// back to the first, products with the transposed weights, which stream as in streamed_field.h. What it leaves are the
// gradients of all phases; those of the parameters are sums over samples of these and of the layers' inputs
// (weight_gradient.h).
//
// With u for a phase, h for a layer's output, g for its gain: du = cos(u) dh, and dh of the layer in front is (g du) W,
// to which the trunk's last output adds the density's gradient. Operands are of E: bfloat16 for deep fields, since
// eight layers may carry gradients anywhere; float16 for shallow ones, with the scales of layer_sums.h.
#pragma once
#include "layer_sums.h"
#include "streamed_field.h"

namespace cips3d {

struct GradientLayers {
  Slabs slabs;                  // of a pass: transposed matrices of E, the colour layer's first
  int64_t image_halves;         // from an image's slabs to the next one's; 0: the same for all
  const float* trunk_gain;      // [B, products, channels of the trunk], with a head
  const float* color_gain;      // [B, channels of the colour layer], with a head
  const float* density_weight;  // [channels of the trunk]
  const float* head_weight;     // [3, channels of the colour layer], with a head
  int products, width, color;   // widths in whole strips
  int trunk_channels, color_channels;
};

struct SampleGradients {
  const float* of_density;  // [B, N] raw
  const float* of_colors;   // [B, N, 3] in front of the head's sigmoid; [B, N, channels] without a head
  const float* scales;      // [2] by GradientScale; null: 1
  // Cosines of phases as float16, and afterwards in their place the gradients of these phases as E, scaled.
  uint16_t* slopes;        // [products - 1, B, N, width]
  uint16_t* color_slopes;  // [B, N, color]
  uint16_t* of_first;      // [B, N, width] gradients of the first layer's outputs as E, scaled
  int all;                 // B N
};

// Two gradients as operands.
template <class E>
__device__ __forceinline__ uint32_t pack_gradients(float x, float y) {
  if constexpr (std::is_same<E, half>::value) {
    uint32_t high, low;
    pack_gradients<false>(x, y, high, low);
    return high;
  } else {
    return Operand<E>::pack(x, y);
  }
}

template <int kRows, int kSlab, bool kHead>
struct StreamedGradients {
  using E = std::conditional_t<kHead, bfloat16, half>;
  using Product = StreamedProduct<kRows, kSlab, kFieldWidth, false, E>;
  static constexpr int kRow = Product::kRow, kUnit = 8;  // channels in 16 bytes, a lane's share of a row
  static_assert(kFieldWidth == 32 * kUnit && kFieldWidth == kStreamThreads && kRows <= kStreamThreads, "");

  static constexpr size_t bytes(int stages) {
    return Product::bytes(stages) + shared_bytes<uint16_t>(kRows * kRow) + shared_bytes<float4>(kFieldWidth) +
           shared_bytes<float>(kFieldWidth) + shared_bytes<float>(kRows) + shared_bytes<float>(2);
  }
  static constexpr bool kFits = bytes(2) <= kSharedOfCode;

  const GradientLayers& layers;
  const SampleGradients& samples;
  Product product;    // its activations: g du of the layer behind
  uint16_t* slopes;   // [kRows, kRow] cosines that come in, gradients of their phases that go out
  float4* heads;      // [kFieldWidth] the density's weight, and the colour's three with a head
  float* gain;        // [kFieldWidth] of the layer whose gradients are computed
  float* of_density;  // [kRows] scaled
  float* scales;      // [2]

  __device__ __forceinline__ StreamedGradients(SharedArrays& shared, const GradientLayers& given,
                                               const SampleGradients& of_samples)
      : layers(given),
        samples(of_samples),
        product(shared),
        slopes(shared.take<uint16_t>(kRows * kRow)),
        heads(shared.take<float4>(kFieldWidth)),
        gain(shared.take<float>(kFieldWidth)),
        of_density(shared.take<float>(kRows)),
        scales(shared.take<float>(2)) {
    product.take_stages(shared, given.slabs);
    const int channel = threadIdx.x, color = layers.color_channels;
    if (channel < 2) scales[channel] = samples.scales == nullptr ? 1.0f : samples.scales[channel];
    const bool in_head = kHead && channel < color;
    const float* head = layers.head_weight + channel;
    heads[channel] =
        make_float4(channel < layers.trunk_channels ? layers.density_weight[channel] : 0.0f, in_head ? head[0] : 0.0f,
                    in_head ? head[color] : 0.0f, in_head ? head[2 * color] : 0.0f);
  }

  // Samples [first, first + count) of all, which belong to one image.
  __device__ __forceinline__ void differentiate(int image, int first, int count) {
    Slabs slabs = layers.slabs;
    slabs.halves += image * layers.image_halves;
    product.start(slabs, ceil_div(count, kRows), NothingBeside{});
    const int top = layers.products - 1;
#pragma unroll 1
    for (int base = 0; base < count; base += kRows) {
      const int rows = min(kRows, count - base);
      load_gain(image, top);
      if (threadIdx.x < kRows)
        of_density[threadIdx.x] =
            threadIdx.x < rows ? scales[kScaleOfAll] * samples.of_density[first + base + threadIdx.x] : 0.0f;
      __syncthreads();
      differentiate_colors(first + base, rows);
#pragma unroll 1
      for (int layer = top; layer >= 0; layer--) {
        const bool has_columns = Product::strip() * kStrip < layers.width;  // a whole warp has
        const int count_slabs = (layer == top ? layers.color : layers.width) / kSlab;
        typename Product::Sums sums = {};
#pragma unroll 1
        for (int k = 0; k < count_slabs; k++) {
          const int stage = product.next(slabs, NothingBeside{});
          if (k == 0) {
            exchange(layer, first + base, rows);
            if (layer > 0) load_gain(image, layer - 1);
          }
          if (has_columns) product.multiply(slabs, sums, stage, k);
        }
        cp_async_wait<0>();  // the cosines, which came with the second slab at the latest
        __syncthreads();
        if (!has_columns) continue;
        if (layer == 0)  // there are two products or more
          finish<false, false>(sums);
        else
          layer == top ? finish<true, true>(sums) : finish<false, true>(sums);
      }
      __syncthreads();
      take_out(samples.of_first, layers.width, first + base, rows);
    }
  }

 private:
  __device__ __forceinline__ uint16_t* rows_of(int layer) const {
    return layer + 1 == layers.products ? samples.color_slopes
                                        : samples.slopes + int64_t{layer} * samples.all * layers.width;
  }
  __device__ __forceinline__ static int unit_channel() { return threadIdx.x % 32 * kUnit; }

  // The gains of the layer behind product `layer`, whose thread has the channel.
  __device__ __forceinline__ void load_gain(int image, int layer) {
    if (!kHead) return;  // without a head they are in the matrices
    const bool color = layer + 1 == layers.products;
    const int channels = color ? layers.color_channels : layers.trunk_channels, channel = threadIdx.x;
    const float* gains = color ? layers.color_gain : layers.trunk_gain;
    const int64_t row = color ? image : int64_t{image} * layers.products + layer + 1;
    gain[channel] = channel < channels ? gains[row * channels + channel] : 0.0f;
  }

  // The colour layer's phases: a warp has a row, a lane 8 channels of it. What several rows need is read at once: one
  // after the other they would wait for memory 16 times. Rows past the end repeat the last one.
  __device__ __forceinline__ void differentiate_colors(int first, int rows) {
    constexpr int kAtOnce = 8, kGiven = kHead ? kHeadValues : kUnit;
    const int channel = unit_channel();
    if (channel >= layers.color) return;
    const float scale = scales[kScaleOfColors];
#pragma unroll 1
    for (int begin = threadIdx.x / 32; begin < kRows; begin += kAtOnce * kStreamWarps) {
      uint4 cosines[kAtOnce];
      float given[kAtOnce][kGiven];
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        const int64_t at = first + min(begin + i * kStreamWarps, rows - 1);
        cosines[i] = *reinterpret_cast<const uint4*>(samples.color_slopes + at * layers.color + channel);
        const float* from = samples.of_colors + at * (kHead ? kHeadValues : layers.color_channels);
#pragma unroll
        for (int e = 0; e < kGiven; e++)
          given[i][e] = kHead ? from[e] : channel + e < layers.color_channels ? from[channel + e] : 0.0f;
      }
#pragma unroll
      for (int pair = 0; pair < 4; pair++) {
        const int at = channel + 2 * pair;
        const float2 gains = gains_of(at);
        float4 a = {}, b = {};
        if (kHead) a = heads[at], b = heads[at + 1];
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) {
          const uint32_t pairs[4] = {cosines[i].x, cosines[i].y, cosines[i].z, cosines[i].w};
          const float2 cosine = Operand<half>::unpack(pairs[pair]);
          float x, y;
          if constexpr (kHead) {
            x = fmaf(given[i][0], a.y, fmaf(given[i][1], a.z, given[i][2] * a.w));
            y = fmaf(given[i][0], b.y, fmaf(given[i][1], b.z, given[i][2] * b.w));
          } else {
            x = scale * given[i][2 * pair], y = scale * given[i][2 * pair + 1];
          }
          put(begin + i * kStreamWarps, at, cosine.x * x, cosine.y * y, gains);
        }
      }
    }
  }

  __device__ __forceinline__ float2 gains_of(int channel) const {
    return kHead ? *reinterpret_cast<const float2*>(gain + channel) : make_float2(1.0f, 1.0f);
  }

  // Two gradients of phases, on their way out and as operands.
  __device__ __forceinline__ void put(int row, int channel, float x, float y, float2 gains) {
    const uint32_t own = pack_gradients<E>(x, y);
    *reinterpret_cast<uint32_t*>(slopes + row * kRow + channel) = own;
    product.put(row, channel, kHead ? pack_gradients<E>(gains.x * x, gains.y * y) : own, 0);
  }

  // Takes out the gradients of a layer's phases and has the cosines of the layer in front of it come in their place:
  // what a thread reads, it overwrites itself.
  __device__ __forceinline__ void exchange(int layer, int first, int rows) {
    take_out(rows_of(layer), layer + 1 == layers.products ? layers.color : layers.width, first, rows);
    const int channel = unit_channel();
    if (layer == 0 || channel >= layers.width) return;
    const uint16_t* from = rows_of(layer - 1) + int64_t{layers.width} * first + channel;
    for (int row = threadIdx.x / 32; row < kRows; row += kStreamWarps)
      cp_async_16(slopes + row * kRow + channel, from + int64_t{layers.width} * min(row, rows - 1),
                  row < rows ? 16 : 0);
  }
  __device__ __forceinline__ void take_out(uint16_t* to, int width, int first, int rows) {
    store_rows<kRows>(slopes, kRow, to + int64_t{width} * first, width, rows);
  }

  // From gradients of a layer's outputs to those of its phases; of the first layer's outputs they stay what they are.
  // The trunk's last one has the density besides.
  template <bool kDensity, bool kPhases>
  __device__ __forceinline__ void finish(const typename Product::Sums& sums) {
    constexpr int kTiles = Product::kTiles;
    const int first_row = Product::first_row();
    const float of_colors = kDensity ? scales[kScaleOfAll] / scales[kScaleOfColors] : 1.0f;
    float density[kTiles][2] = {};
    if constexpr (kDensity) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; i++) density[i / 2][i % 2] = of_density[first_row + 8 * i];
    }
#pragma unroll
    for (int n = 0; n < kStrip / 8; n++) {
      const int channel = Product::first_column() + 8 * n;
      const float v[2] = {kDensity ? heads[channel].x : 0.0f, kDensity ? heads[channel + 1].x : 0.0f};
      // Read before anything is written: behind a write each would be waited for.
      uint32_t cosines[kTiles][2] = {};
      float2 gains = {};
      if constexpr (kPhases) {
        gains = gains_of(channel);
#pragma unroll
        for (int i = 0; i < 2 * kTiles; i++)
          cosines[i / 2][i % 2] = *reinterpret_cast<const uint32_t*>(slopes + (first_row + 8 * i) * kRow + channel);
      }
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int row = first_row + 16 * m + 8 * r;
          float x = sums[n / 2][m][n % 2][2 * r], y = sums[n / 2][m][n % 2][2 * r + 1];
          if (kDensity) x = fmaf(of_colors, x, density[m][r] * v[0]), y = fmaf(of_colors, y, density[m][r] * v[1]);
          if constexpr (kPhases) {
            const float2 cosine = Operand<half>::unpack(cosines[m][r]);
            put(row, channel, cosine.x * x, cosine.y * y, gains);
          } else {
            *reinterpret_cast<uint32_t*>(slopes + row * kRow + channel) = pack_gradients<E>(x, y);
          }
        }
    }
  }
};

}  // namespace cips3d

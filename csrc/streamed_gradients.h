// Gradients of a streamed field at single samples, from what recorded_samples.h has kept of them: from the colour layer
// back to the first, products with the transposed weights, which stream as in streamed_field.h. What it leaves are the
// gradients of all phases; those of the parameters are sums over samples of these and of the layers' inputs
// (weight_gradient.h).
//
// With u for a phase, h for a layer's output, g for its gain: du = cos(u) dh, and dh of the layer in front is (g du) W,
// to which the trunk's last output adds the density's gradient. Operands are of E: bfloat16 for deep fields, since
// eight layers may carry gradients anywhere; float16 for shallow ones, with the scales of layer_sums.h. In the accurate
// mode they are high and low parts of bfloat16, whose three products leave 5e-6 a layer.
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

  // The density's weight of a channel, and with a head the colour's three.
  template <bool kHead>
  __device__ __forceinline__ float4 head_of(int channel) const {
    const bool in_head = kHead && channel < color_channels;
    const float* head = head_weight + channel;
    return make_float4(channel < trunk_channels ? density_weight[channel] : 0.0f, in_head ? head[0] : 0.0f,
                       in_head ? head[color_channels] : 0.0f, in_head ? head[2 * color_channels] : 0.0f);
  }
  // The gain of the layer behind product `layer`. Without a head gains are in the matrices.
  __device__ __forceinline__ float gain_of(int image, int layer, int channel) const {
    const bool is_color = layer + 1 == products;
    const int channels = is_color ? color_channels : trunk_channels;
    const int64_t row = is_color ? image : int64_t{image} * products + layer + 1;
    return channel < channels ? (is_color ? color_gain : trunk_gain)[row * channels + channel] : 0.0f;
  }
};

// Number: float in the accurate mode, else 16 bits.
template <class Number>
struct SampleGradients {
  const float* of_density;  // [B, N] raw
  const float* of_colors;   // [B, N, 3] in front of the head's sigmoid; [B, N, channels] without a head
  const float* scales;      // [2] by GradientScale; null: 1
  // Cosines of phases, and afterwards in their place the gradients of these phases: float16 and then E, scaled, or
  // float. The trunk's first layer has no cosines, and gets the gradients of its outputs.
  Number* slopes;        // [products, B, N, width] the trunk's
  Number* color_slopes;  // [B, N, color]
  int all;               // B N

  // The samples of a tile, from `first` of all on, in a tensor of one layer.
  struct Tile {
    Number* numbers;  // [rows, width]
    int width, rows;
  };
  // Of product `layer`, whose phases are behind it; -1: of the first layer.
  __device__ __forceinline__ Tile tile_of(const GradientLayers& layers, int layer, int first, int rows) const {
    if (layer + 1 == layers.products) return {color_slopes + int64_t{layers.color} * first, layers.color, rows};
    return {slopes + (int64_t{layer + 1} * all + first) * layers.width, layers.width, rows};
  }
};

// Two gradients as operands.
template <class E, bool kLow>
__device__ __forceinline__ void pack_gradients(float x, float y, uint32_t& high, uint32_t& low) {
  if constexpr (std::is_same<E, half>::value)
    pack_gradients<kLow>(x, y, high, low);
  else
    split<E, kLow>(x, y, high, low);
}

template <int kRows_, int kSlab_, bool kAccurate, bool kHead, int kColumns = kFieldWidth>
struct StreamedGradients {
  static constexpr int kRows = kRows_, kSlab = kSlab_;
  using E = std::conditional_t<kHead || kAccurate, bfloat16, half>;
  using Number = std::conditional_t<kAccurate, float, uint16_t>;
  using Product = StreamedProduct<kRows, kSlab, kColumns, kAccurate, E, kColumns>;
  static constexpr int kRow = Product::kRow, kTiles = Product::kTiles, kParts = Product::kParts;
  static constexpr int kUnit = 16 / sizeof(Number);  // channels in 16 bytes
  static_assert(kFieldWidth == kStreamThreads && kRows <= kStreamThreads, "");

  static constexpr size_t bytes(int stages) {
    return Product::bytes(stages) + (kAccurate ? 0 : shared_bytes<uint16_t>(kRows * kRow)) +
           shared_bytes<float4>(kFieldWidth) + shared_bytes<float>(kFieldWidth) + shared_bytes<float>(kRows) +
           shared_bytes<float>(2);
  }
  static size_t bytes(const GradientLayers& layers) { return bytes(layers.slabs.stages); }
  static constexpr bool kFits = bytes(2) <= kSharedOfCode, kCoreMatrices = false;

  using Tile = typename SampleGradients<Number>::Tile;
  // A thread's, where its sums are: read ahead in the accurate mode, in which shared memory has no room for them.
  using Cosines = float2[kAccurate ? kStrip / 8 : 1][2 * kTiles];

  const GradientLayers& layers;
  const SampleGradients<Number>& samples;
  Product product;    // its activations: g du of the layer behind
  uint16_t* slopes;   // [kRows, kRow] cosines that come in, gradients of their phases that go out; of 16 bits
  float4* heads;      // [kFieldWidth] the density's weight, and the colour's three with a head
  float* gain;        // [kFieldWidth] of the layer whose gradients are computed
  float* of_density;  // [kRows] scaled
  float* scales;      // [2]

  __device__ __forceinline__ StreamedGradients(SharedArrays& shared, const GradientLayers& given,
                                               const SampleGradients<Number>& of_samples)
      : layers(given),
        samples(of_samples),
        product(shared),
        slopes(kAccurate ? nullptr : shared.take<uint16_t>(kRows * kRow)),
        heads(shared.take<float4>(kFieldWidth)),
        gain(shared.take<float>(kFieldWidth)),
        of_density(shared.take<float>(kRows)),
        scales(shared.take<float>(2)) {
    product.take_stages(shared, given.slabs);
    const int channel = threadIdx.x;
    if (channel < 2) scales[channel] = samples.scales == nullptr ? 1.0f : samples.scales[channel];
    heads[channel] = layers.head_of<kHead>(channel);
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
      differentiate_colors(tile_of(top, first + base, rows), first + base);
#pragma unroll 1
      for (int layer = top; layer >= 0; layer--) {
        const Tile behind = tile_of(layer, first + base, rows), tile = tile_of(layer - 1, first + base, rows);
        const bool has_columns = Product::strip() * kStrip < layers.width;  // a whole warp has
        const int count_slabs = (layer == top ? layers.color : layers.width) / kSlab;
        typename Product::Sums sums = {};
        Cosines cosines = {};
#pragma unroll 1
        for (int k = 0; k < count_slabs; k++) {
          const int stage = product.next(slabs, NothingBeside{});
          if (k == 0) {
            if constexpr (!kAccurate) exchange(behind, tile, layer > 0);
            if (layer > 0) load_gain(image, layer - 1);
          }
          if (kAccurate && k + 1 == count_slabs && has_columns && layer > 0) read(cosines, tile);
          if (has_columns) product.multiply(slabs.columns, sums, stage, k);
        }
        if (!kAccurate) cp_async_wait<0>();  // the cosines, which came with the second slab at the latest
        __syncthreads();
        if (!has_columns) continue;
        if (layer == 0)  // there are two products or more
          finish<false, false>(sums, cosines, tile);
        else
          layer == top ? finish<true, true>(sums, cosines, tile) : finish<false, true>(sums, cosines, tile);
      }
      __syncthreads();
      if constexpr (!kAccurate) take_out(tile_of(-1, first + base, rows));
    }
  }

 private:
  __device__ __forceinline__ Tile tile_of(int layer, int first, int rows) const {
    return samples.tile_of(layers, layer, first, rows);
  }
  __device__ __forceinline__ static int unit_channel() { return threadIdx.x % 32 * kUnit; }

  // The gains of the layer behind product `layer`.
  __device__ __forceinline__ void load_gain(int image, int layer) {
    if (kHead) gain[threadIdx.x] = layers.gain_of(image, layer, threadIdx.x);
  }

  // The colour layer's phases: a warp has a row, a lane a unit of its channels. What several rows need is read at once:
  // one after the other they would wait for memory 16 times. Rows past the end are zeros.
  __device__ __forceinline__ void differentiate_colors(const Tile& tile, int first) {
#pragma unroll 1
    for (int channel = unit_channel(); channel < tile.width; channel += 32 * kUnit)
      differentiate_colors(tile, first, channel);
  }
  __device__ __forceinline__ void differentiate_colors(const Tile& tile, int first, int channel) {
    constexpr int kAtOnce = kRows / kStreamWarps < 8 ? kRows / kStreamWarps : 8, kGiven = kHead ? kHeadValues : kUnit;
    const float scale = scales[kScaleOfColors];
#pragma unroll 1
    for (int begin = threadIdx.x / 32; begin < kRows; begin += kAtOnce * kStreamWarps) {
      uint4 cosines[kAtOnce];
      float given[kAtOnce][kGiven];
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        const int row = begin + i * kStreamWarps;
        const int64_t at = first + min(row, tile.rows - 1);
        cosines[i] = {};
        if (row < tile.rows)
          cosines[i] = *reinterpret_cast<const uint4*>(tile.numbers + int64_t{tile.width} * row + channel);
        const float* from = samples.of_colors + at * (kHead ? kHeadValues : layers.color_channels);
#pragma unroll
        for (int e = 0; e < kGiven; e++)
          given[i][e] = kHead ? from[e] : channel + e < layers.color_channels ? from[channel + e] : 0.0f;
      }
#pragma unroll
      for (int pair = 0; pair < kUnit / 2; pair++) {
        const int at = channel + 2 * pair;
        const float2 gains = gains_of(at);
        float4 a = {}, b = {};
        if (kHead) a = heads[at], b = heads[at + 1];
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) {
          const uint32_t words[4] = {cosines[i].x, cosines[i].y, cosines[i].z, cosines[i].w};
          float2 cosine;
          if constexpr (kAccurate)
            cosine = {__uint_as_float(words[2 * pair]), __uint_as_float(words[2 * pair + 1])};
          else
            cosine = Operand<half>::unpack(words[pair]);
          float x, y;
          if constexpr (kHead) {
            x = fmaf(given[i][0], a.y, fmaf(given[i][1], a.z, given[i][2] * a.w));
            y = fmaf(given[i][0], b.y, fmaf(given[i][1], b.z, given[i][2] * b.w));
          } else {
            x = scale * given[i][2 * pair], y = scale * given[i][2 * pair + 1];
          }
          const int row = begin + i * kStreamWarps;
          x *= cosine.x, y *= cosine.y;
          if constexpr (kAccurate) {
            put_operand(row, at, x, y, gains);
            (pair == 0 ? cosines[i].x : cosines[i].z) = __float_as_uint(x);
            (pair == 0 ? cosines[i].y : cosines[i].w) = __float_as_uint(y);
          } else {
            put(tile, row, at, x, y, gains);
          }
        }
      }
      if constexpr (kAccurate) {  // as whole units: in pairs a write would fill half of a sector
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) {
          const int row = begin + i * kStreamWarps;
          if (row < tile.rows)
            *reinterpret_cast<uint4*>(tile.numbers + int64_t{tile.width} * row + channel) = cosines[i];
        }
      }
    }
  }

  __device__ __forceinline__ float2 gains_of(int channel) const {
    return kHead ? *reinterpret_cast<const float2*>(gain + channel) : make_float2(1.0f, 1.0f);
  }

  // Two gradients of phases, on their way out and as operands.
  __device__ __forceinline__ void put(const Tile& tile, int row, int channel, float x, float y, float2 gains) {
    keep(tile, row, channel, x, y);
    put_operand(row, channel, x, y, gains);
  }
  __device__ __forceinline__ void put_operand(int row, int channel, float x, float y, float2 gains) {
    uint32_t high, low = 0;
    pack_gradients<E, kAccurate>(gains.x * x, gains.y * y, high, low);
    product.put(row, channel, high, low);
  }
  __device__ __forceinline__ void keep(const Tile& tile, int row, int channel, float x, float y) {
    if constexpr (kAccurate) {
      if (row < tile.rows)
        *reinterpret_cast<float2*>(tile.numbers + unsigned(tile.width * row + channel)) = make_float2(x, y);
    } else {
      uint32_t pair, none;
      pack_gradients<E, false>(x, y, pair, none);
      *reinterpret_cast<uint32_t*>(slopes + row * kRow + channel) = pair;
    }
  }

  // Takes out the gradients of a layer's phases and has the cosines of the layer in front of it come in their place:
  // what a thread reads, it overwrites itself.
  __device__ __forceinline__ void exchange(const Tile& out, const Tile& in, bool with_cosines) {
    take_out(out);
    const int channel = unit_channel();
    if (!with_cosines || channel >= in.width) return;
    for (int row = threadIdx.x / 32; row < kRows; row += kStreamWarps)
      cp_async_16(slopes + row * kRow + channel, in.numbers + int64_t{in.width} * min(row, in.rows - 1) + channel,
                  row < in.rows ? 16 : 0);
  }
  __device__ __forceinline__ void take_out(const Tile& tile) {
    store_rows<kRows>(slopes, kRow, tile.numbers, tile.width, tile.rows);
  }

  // Cosines that the same thread replaces. Rows past the end have none.
  __device__ __forceinline__ static void read(Cosines& cosines, const Tile& tile) {
    if constexpr (kAccurate) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; i++) {
        const int row = Product::first_row() + 8 * i;
        const float* from = tile.numbers + unsigned(tile.width * row + Product::first_column());
#pragma unroll
        for (int n = 0; n < kStrip / 8; n++)
          if (row < tile.rows) cosines[n][i] = *reinterpret_cast<const float2*>(from + 8 * n);
      }
    }
  }

  // From gradients of a layer's outputs to those of its phases; of the first layer's outputs they stay what they are.
  // The trunk's last one has the density besides.
  template <bool kDensity, bool kPhases>
  __device__ __forceinline__ void finish(const typename Product::Sums& sums, const Cosines& read_ahead,
                                         const Tile& tile) {
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
      float2 cosines[2 * kTiles] = {}, gains = {};
      if constexpr (kPhases) {
        gains = gains_of(channel);
#pragma unroll
        for (int i = 0; i < 2 * kTiles; i++) {
          if constexpr (kAccurate)
            cosines[i] = read_ahead[n][i];
          else
            cosines[i] = Operand<half>::unpack(
                *reinterpret_cast<const uint32_t*>(slopes + (first_row + 8 * i) * kRow + channel));
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int row = first_row + 16 * m + 8 * r;
          float x = sums[n / 2][m][n % 2][2 * r], y = sums[n / 2][m][n % 2][2 * r + 1];
          if (kDensity) x = fmaf(of_colors, x, density[m][r] * v[0]), y = fmaf(of_colors, y, density[m][r] * v[1]);
          const float2 cosine = cosines[2 * m + r];
          if (kPhases)
            put(tile, row, channel, cosine.x * x, cosine.y * y, gains);
          else
            keep(tile, row, channel, x, y);
        }
    }
  }
};

}  // namespace cips3d

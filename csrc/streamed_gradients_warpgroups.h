// The gradients of streamed_gradients.h for compute capability 9.0, with operands of 16 bits and trunks of 256
// channels: the same arithmetic, other instructions. As in streamed_field_warpgroups.h, two warpgroups take 64 samples
// each from the colour layer back to the first and share the weights; one works on gradients while the other one
// multiplies.
#pragma once
#include "streamed_gradients.h"
#include "warpgroup_rows.h"

namespace cips3d {

template <bool kHead>
struct WarpgroupStreamedGradients {
  using E = std::conditional_t<kHead, bfloat16, half>;
  using Number = uint16_t;
  static constexpr int kSlab = 32, kParts = 1, kStages = 5;
  static constexpr bool kFits = kHasWarpgroups, kCoreMatrices = true;
  using Rows = WarpgroupRows<kSlab>;
  static constexpr int kWarpgroups = 2, kRows = kWarpgroups * Rows::kRows, kThreads = kWarpgroups * Rows::kThreads;
  static constexpr int kGroupHalves = Rows::kRows * kFieldWidth;
  using Stages = BulkStages<kStages, Rows::kStageHalves, kThreads / 32>;
  using Tile = typename SampleGradients<Number>::Tile;
  static_assert(kThreads == kStreamThreads && kFieldWidth == kStreamColumns, "");

  static bool serves(const GradientLayers& layers) { return layers.width == kFieldWidth; }
  static size_t bytes(const GradientLayers& layers) {
    return 2 * shared_bytes<half>(kWarpgroups * kGroupHalves) + Stages::kBytes + shared_bytes<float4>(kFieldWidth) +
           shared_bytes<float>(gain_rows(layers) * kFieldWidth) + shared_bytes<float>(2);
  }

  const GradientLayers& layers;
  const SampleGradients<Number>& samples;
  Rows rows;       // of the warpgroup: g du of the layer behind
  Rows slopes;     // of the warpgroup: cosines that come in, gradients of their phases that go out
  Stages weights;  // slabs of the image's layers, once more for every kRows samples
  float4* heads;   // [kFieldWidth] the density's weight, and the colour's three with a head
  float* gain;     // [products, kFieldWidth] of the layers behind the products, with a head
  float* scales;   // [2]
  int64_t image_halves;

  __device__ __forceinline__ WarpgroupStreamedGradients(SharedArrays& shared, const GradientLayers& given,
                                                        const SampleGradients<Number>& of_samples)
      : layers(given),
        samples(of_samples),
        rows{shared.take<half>(kWarpgroups * kGroupHalves) + warpgroup() * kGroupHalves},
        slopes{shared.take<half>(kWarpgroups * kGroupHalves) + warpgroup() * kGroupHalves},
        weights(shared),
        heads(shared.take<float4>(kFieldWidth)),
        gain(shared.take<float>(gain_rows(given) * kFieldWidth)),
        scales(shared.take<float>(2)),
        image_halves(0) {
    weights.init();
    if (threadIdx.x < 2) scales[threadIdx.x] = samples.scales == nullptr ? 1.0f : samples.scales[threadIdx.x];
    heads[threadIdx.x] = layers.head_of<kHead>(threadIdx.x);
  }

  // Samples [first, first + count) of all, which belong to one image.
  __device__ __forceinline__ void differentiate(int image, int first, int count) {
    image_halves = image * layers.image_halves;
    const int top = layers.products - 1;
    if (kHead)
      for (int layer = 0; layer <= top; layer++)
        gain[layer * kFieldWidth + threadIdx.x] = layers.gain_of(image, layer, threadIdx.x);
    __syncthreads();
    weights.begin(ceil_div(count, kRows) * layers.slabs.count, copy());
#pragma unroll 1
    for (int base = 0; base < count; base += kRows) {
      const int before = warpgroup() * Rows::kRows, there = count - base - before;  // the warpgroup's, if any
      const int at = first + base + (there > 0 ? before : 0);
      differentiate_colors(tile_of(top, at, there), at);
#pragma unroll 1
      for (int layer = top; layer >= 0; layer--) {
        const Tile tile = tile_of(layer - 1, at, there);
        Rows::publish();
        exchange(tile_of(layer, at, there), tile, layer > 0);
        float sums[kStreamColumns / 2];
        rows.template multiply<E>(sums, (layer == top ? layers.color : kFieldWidth) / kSlab, weights, copy());
        cp_async_wait<0>();
        warpgroup_sync();  // its operands have been read, and the cosines are there
        if (layer == 0)    // there are two products or more
          finish<false, false>(sums, layer, at, there);
        else
          layer == top ? finish<true, true>(sums, layer, at, there) : finish<false, true>(sums, layer, at, there);
      }
      __syncwarp();
      take_out(tile_of(-1, at, there));
    }
  }

 private:
  __host__ __device__ static int gain_rows(const GradientLayers& layers) { return kHead ? layers.products : 0; }
  __device__ __forceinline__ static int warpgroup() { return threadIdx.x / Rows::kThreads; }
  __device__ __forceinline__ Tile tile_of(int layer, int first, int count) const {
    return samples.tile_of(layers, layer, first, count);
  }

  // Of slab i of a pass.
  __device__ __forceinline__ auto copy() const {
    return [this](int i, const auto& stage) {
      const half* slabs = layers.slabs.halves + image_halves;
      stage.template fill<Rows::kStageHalves * sizeof(half)>(slabs + static_cast<int64_t>(i % layers.slabs.count) *
                                                                         Rows::kStageHalves);
    };
  }

  // The gains of the layer behind a product, of two channels.
  __device__ __forceinline__ float2 gains_of(int layer, int channel) const {
    return kHead ? *reinterpret_cast<const float2*>(gain + layer * kFieldWidth + channel) : make_float2(1.0f, 1.0f);
  }
  __device__ __forceinline__ static uint32_t packed(float x, float y) {
    uint32_t pair, none;
    pack_gradients<E, false>(x, y, pair, none);
    return pair;
  }

  // The colour layer's phases, in units of eight channels of a row (warpgroup_rows.h). What several need is read at
  // once: one after the other they would wait for memory 16 times. Rows past the end are zeros.
  __device__ __forceinline__ void differentiate_colors(const Tile& tile, int first) const {
    constexpr int kAtOnce = kHead ? 8 : 4, kUnit = 8;
    const int top = layers.products - 1;
    const float scale = scales[kScaleOfColors];
    float of_head[2][kHeadValues] = {};  // of the lane's rows
    if constexpr (kHead) {
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int k = 0; k < kHeadValues; k++)
          if (Rows::unit_row(i) < tile.rows)
            of_head[i][k] = samples.of_colors[int64_t{kHeadValues} * (first + Rows::unit_row(i)) + k];
    }
#pragma unroll 1
    for (int begin = 0; begin < Rows::kUnits && kUnit * Rows::unit_group(begin) < tile.width; begin += kAtOnce) {
      uint4 cosines[kAtOnce] = {};
      float given[kAtOnce][kHead ? 1 : kUnit] = {};
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        const int row = Rows::unit_row(begin + i), channel = kUnit * Rows::unit_group(begin + i);
        if (row >= tile.rows || channel >= tile.width) continue;
        cosines[i] = *reinterpret_cast<const uint4*>(tile.numbers + int64_t{tile.width} * row + channel);
        if constexpr (!kHead) {
          const float* from = samples.of_colors + int64_t{layers.color_channels} * (first + row) + channel;
#pragma unroll
          for (int e = 0; e < kUnit; e++)
            if (channel + e < layers.color_channels) given[i][e] = scale * from[e];
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; i += 2) {  // two rows of the same channels, which are read for both
        const int channel = kUnit * Rows::unit_group(begin + i);
        if (channel >= tile.width) continue;
        uint32_t phases[2][4], operands[2][4];
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
          const float2 gains = gains_of(top, channel + 2 * pair);
          float4 a = {}, b = {};
          if (kHead) a = heads[channel + 2 * pair], b = heads[channel + 2 * pair + 1];
#pragma unroll
          for (int r = 0; r < 2; r++) {
            const uint4 unit = cosines[i + r];
            const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
            const float2 cosine = Operand<half>::unpack(words[pair]);
            float x, y;
            if constexpr (kHead) {
              x = fmaf(of_head[r][0], a.y, fmaf(of_head[r][1], a.z, of_head[r][2] * a.w));
              y = fmaf(of_head[r][0], b.y, fmaf(of_head[r][1], b.z, of_head[r][2] * b.w));
            } else {
              x = given[i + r][2 * pair], y = given[i + r][2 * pair + 1];
            }
            x *= cosine.x, y *= cosine.y;
            phases[r][pair] = packed(x, y), operands[r][pair] = packed(gains.x * x, gains.y * y);
          }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
          *slopes.unit(begin + i + r) = make_uint4(phases[r][0], phases[r][1], phases[r][2], phases[r][3]);
          *rows.unit(begin + i + r) = make_uint4(operands[r][0], operands[r][1], operands[r][2], operands[r][3]);
        }
      }
    }
  }

  // Takes out the gradients of a layer's phases and has the cosines of the layer in front of it come in their place:
  // what a thread reads, it overwrites itself.
  __device__ __forceinline__ void exchange(const Tile& out, const Tile& in, bool with_cosines) const {
    take_out(out);
    if (with_cosines) slopes.fetch(in.numbers, in.width, in.rows);
  }
  __device__ __forceinline__ void take_out(const Tile& tile) const {
    slopes.store(tile.numbers, tile.width, tile.rows);
  }

  // From gradients of a layer's outputs to those of its phases; of the first layer's outputs they stay what they are.
  // The trunk's last one has the density besides. What column groups need is read some groups ahead, since loads never
  // move up across stores.
  template <bool kDensity, bool kPhases>
  __device__ __forceinline__ void finish(const float (&sums)[kStreamColumns / 2], int layer, int first,
                                         int there) const {
    constexpr int kAhead = 4;
    const float of_colors = kDensity ? scales[kScaleOfAll] / scales[kScaleOfColors] : 1.0f;
    float density[2] = {};
    if constexpr (kDensity) {
#pragma unroll
      for (int r = 0; r < 2; r++)
        if (Rows::row(r) < there) density[r] = scales[kScaleOfAll] * samples.of_density[first + Rows::row(r)];
    }
    uint32_t cosines[kAhead][2] = {};
    float2 gains[kAhead] = {}, v[kAhead] = {};
    const auto read = [&](int n) {
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        const int channel = 8 * (n + i) + Rows::column();
        if constexpr (kDensity) v[i] = make_float2(heads[channel].x, heads[channel + 1].x);
        if constexpr (!kPhases) continue;
        gains[i] = gains_of(layer - 1, channel);
#pragma unroll
        for (int r = 0; r < 2; r++) cosines[i][r] = *slopes.pair(r, n + i);
      }
    };
    read(0);
#pragma unroll
    for (int n = 0; n < Rows::kColumnGroups; n += kAhead) {
      uint32_t phases[kAhead][2], operands[kAhead][2];
#pragma unroll
      for (int i = 0; i < kAhead; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          float x = sums[4 * (n + i) + 2 * r], y = sums[4 * (n + i) + 2 * r + 1];
          if (kDensity) x = fmaf(of_colors, x, density[r] * v[i].x), y = fmaf(of_colors, y, density[r] * v[i].y);
          if constexpr (kPhases) {
            const float2 cosine = Operand<half>::unpack(cosines[i][r]);
            x *= cosine.x, y *= cosine.y;
            operands[i][r] = packed(gains[i].x * x, gains[i].y * y);
          }
          phases[i][r] = packed(x, y);
        }
      if (n + kAhead < Rows::kColumnGroups) read(n + kAhead);
#pragma unroll
      for (int i = 0; i < kAhead; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          *slopes.pair(r, n + i) = phases[i][r];
          if (kPhases) rows.put(r, n + i, operands[i][r]);
        }
    }
  }
};

}  // namespace cips3d

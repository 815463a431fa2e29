// The fields of streamed_field.h for compute capability 9.0, with float16 operands and trunks of 256 channels: the same
// arithmetic, other instructions.
//
// Two warpgroups take 64 samples each through all layers (warpgroup_rows.h) and share the weights. While one of them
// computes the sines of a layer, the other one multiplies: the stages between them let one be so many slabs ahead. All
// channels of a sample belong to the four lanes of a row, so that densities and heads are two shuffles.
#pragma once
#include "recorded_samples.h"
#include "warpgroup_rows.h"

namespace cips3d {

template <bool kHead>
struct WarpgroupStreamedField {
  using Layers = StreamedLayers;
  using Team = BlockTeam;
  using Color = std::conditional_t<kHead, float, half>;
  using Record = half;
  static constexpr int kSlab = 32, kParts = 1, kStages = kHead ? 6 : 5;  // composited colours need room
  static constexpr bool kCoreMatrices = true;
  using Rows = WarpgroupRows<kSlab>;
  static constexpr int kWarpgroups = 2, kRows = kWarpgroups * Rows::kRows;
  static constexpr int kMostThreads = kWarpgroups * Rows::kThreads, kMostWarps = kMostThreads / 32;
  static constexpr int kFewestWarps = kMostWarps;
  static constexpr int kRound = 0;  // nothing beside a pass
  static constexpr bool kFits = kHasWarpgroups;
  static constexpr int kDepth = kFieldWidth + (kHead ? kSlab : 0);  // of activations: behind the width the direction
  static constexpr int kGroupHalves = Rows::kRows * kDepth;
  using Stages = BulkStages<kStages, Rows::kStageHalves, kMostWarps>;
  static_assert(kFieldWidth == kStreamColumns, "");

  using AllColumns = float[kStreamColumns / 2];  // a thread's sums
  using Strip = float[kStrip / 2];
  template <int kHeads>
  using HeadSums = float[2][kHeads > 0 ? kHeads : 1];  // of a thread's rows r

  // Whether there is a kernel for such a field. Products have all columns, or in the colour layer one strip.
  static bool serves(const Layers& layers) { return layers.width == kFieldWidth; }
  __host__ __device__ static constexpr int color_row(const Layers& layers) {
    return kHead ? 4 : layers.color + kPadColors<Color>;
  }
  static int step(int) { return kRows; }
  static size_t bytes(const Layers& layers) {
    return shared_bytes<half>(kWarpgroups * kGroupHalves) + Stages::kBytes + 2 * shared_bytes<float4>(kFieldWidth) +
           shared_bytes<float2>(layers.products * kFieldWidth);
  }
  __device__ __forceinline__ static int channels(const Layers& layers) { return kHead ? kHeadValues : layers.channels; }

  const Layers& layers;
  Rows rows;           // of the warpgroup, kDepth channels
  Stages weights;      // slabs of the image's layers, once more for every kRows samples
  float4* heads;       // [kFieldWidth] the density's weight, and with kHead the colour's three
  float4* first;       // [kFieldWidth] the first layer
  float2* modulation;  // [products, kFieldWidth]
  int64_t image_halves;

  __device__ __forceinline__ WarpgroupStreamedField(SharedArrays& shared, const Layers& given)
      : layers(given),
        rows{shared.take<half>(kWarpgroups * kGroupHalves) + warpgroup() * kGroupHalves},
        weights(shared),
        heads(shared.take<float4>(kFieldWidth)),
        first(shared.take<float4>(kFieldWidth)),
        modulation(shared.take<float2>(given.products * kFieldWidth)),
        image_halves(0) {
    weights.init();
    for (int i = threadIdx.x; i < kFieldWidth; i += kMostThreads) heads[i] = given.heads[i];
  }

  __device__ __forceinline__ void begin(int64_t image) {
    image_halves = image * layers.image_halves;
    for (int i = threadIdx.x; i < kFieldWidth; i += kMostThreads) first[i] = layers.first[image * kFieldWidth + i];
    const int count = layers.products * kFieldWidth;
    for (int i = threadIdx.x; i < count; i += kMostThreads) modulation[i] = layers.modulation[image * count + i];
  }

  // Densities and colours of a pass (SamplePass or RecordedPass), kRows samples at a time.
  template <class Pass>
  __device__ void evaluate(const Pass& pass) {
    weights.begin(ceil_div(pass.size(), kRows) * layers.slabs.count, copy());
    const int color = layers.products - 1;
#pragma unroll 1
    for (int base = 0; base < pass.size(); base += kRows) {
      float density[2], ball[2];
      place(pass, base, ball);
#pragma unroll 1
      for (int layer = 0; layer < color; layer++) {
        AllColumns phase;
        multiply(phase, pass, base, layer);
        if (layer + 1 < color) {
          HeadSums<0> none;
          finish<true, 0>(phase, pass, base, layer, none);
        } else {
          HeadSums<1> sums = {};
          finish<true, 1>(phase, pass, base, layer, sums);
          density[0] = sum_of_row(sums[0][0]), density[1] = sum_of_row(sums[1][0]);
        }
      }
      keep_density(pass, base, density, ball);
      if (layers.color > kStrip)
        evaluate_colors<AllColumns>(pass, base);
      else
        evaluate_colors<Strip>(pass, base);
    }
  }

 private:
  __device__ __forceinline__ static int warpgroup() { return threadIdx.x / Rows::kThreads; }
  // Row r of the thread, 0 or 1, among those of the tile.
  __device__ __forceinline__ static int row(int r) { return warpgroup() * Rows::kRows + Rows::row(r); }

  // Of slab i of a pass.
  __device__ __forceinline__ auto copy() const {
    return [this](int i, const auto& stage) {
      constexpr int kBytes = Rows::kStageHalves * sizeof(half), kStripBytes = kBytes * kStrip / kStreamColumns;
      const Slabs& slabs = layers.slabs;
      const int slab = i % slabs.count;
      const bool is_strip = slabs.columns_of(slab) == kStrip;
      const half* from = slabs.halves + image_halves + int64_t{slabs.columns_before(slab)} * kSlab;
      is_strip ? stage.template fill<kStripBytes>(from) : stage.template fill<kBytes>(from);
    };
  }

  // The first layer's activations of kRows samples of a pass, in float32 until then: an error of a coordinate is an
  // error of every phase behind it. With a head the directions of their rays besides.
  template <class Pass>
  __device__ __forceinline__ void place(const Pass& pass, int base, float (&ball)[2]) const {
    float3 points[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const PassSample sample = pass[base + row(r)];
      points[r] = sample.point;
      ball[r] = kHead ? 0.0f : layers.ball.at(sample.point);
      if constexpr (kHead) {
        const float* direction = pass.direction(sample);
        const int pair = Rows::lane() % 4;  // x and y, or z, or nothing
        const float x = pair < 2 ? direction[2 * pair] : 0.0f, y = pair == 0 ? direction[1] : 0.0f;
        rows.put(r, kFieldWidth / 8, Operand<half>::pack(x, y));
#pragma unroll
        for (int n = kFieldWidth / 8 + 1; n < kDepth / 8; n++) rows.put(r, n, 0);
      }
    }
    // Layers and modulations are read a few column groups ahead, since loads never move up across stores.
    constexpr int kAhead = 4;
    float4 next[kAhead][2];
    const auto read = [&](int n) {
#pragma unroll
      for (int i = 0; i < 2 * kAhead; i++) next[i / 2][i % 2] = first[8 * (n + i / 2) + Rows::column() + i % 2];
    };
    read(0);
#pragma unroll
    for (int n = 0; n < kFieldWidth / 8; n += kAhead) {
      uint32_t pairs[kAhead][2];
#pragma unroll
      for (int i = 0; i < 2 * kAhead; i++) {
        const float4 a = next[i / 2][0], b = next[i / 2][1];
        const float3 p = points[i % 2];
        pairs[i / 2][i % 2] = Operand<half>::pack(sine<false>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w)))),
                                                  sine<false>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w)))));
      }
      if (n + kAhead < kFieldWidth / 8) read(n + kAhead);
#pragma unroll
      for (int i = 0; i < 2 * kAhead; i++) rows.put(i % 2, n + i / 2, pairs[i / 2][i % 2]);
    }
  }

  // The product of a layer, whose inputs a pass may keep. Afterwards they may be overwritten.
  template <int kSums, class Pass>
  __device__ __forceinline__ void multiply(float (&phase)[kSums], const Pass& pass, int base, int layer) {
    Rows::publish();
    if constexpr (Pass::kRecords) {
      const int before = base + warpgroup() * Rows::kRows;
      rows.store(pass.inputs_of(before, layer), kFieldWidth, pass.size() - before);
    }
    const bool has_direction = kHead && layer + 1 == layers.products;
    rows.multiply(phase, kFieldWidth / kSlab + has_direction, weights, copy());
    warpgroup_sync();  // all its warps have read them
  }

  // Sines of a product's phases: the next activations with kKeep, and what a pass keeps of them; to `sums` they add
  // their part of a row's density for kHeads = 1, of its colours for 3.
  template <bool kKeep, int kHeads, int kSums, class Pass>
  __device__ __forceinline__ void finish(const float (&phase)[kSums], const Pass& pass, int base, int layer,
                                         HeadSums<kHeads>& sums) const {
    if (Pass::kRecords && base + kRows > pass.size())
      finish_rows<kKeep, kHeads, false>(phase, pass, base, layer, sums);
    else
      finish_rows<kKeep, kHeads, true>(phase, pass, base, layer, sums);
  }
  template <bool kKeep, int kHeads, bool kWhole, int kSums, class Pass>
  __device__ __forceinline__ void finish_rows(const float (&phase)[kSums], const Pass& pass, int base, int layer,
                                              HeadSums<kHeads>& sums) const {
    constexpr int kGroups = kSums / 4, kAhead = kHeads == kHeadValues ? 2 : 4;
    float4 next[kAhead];
    const auto read = [&](int n) {
#pragma unroll
      for (int i = 0; i < kAhead; i++) next[i] = modulation_of(layer, n + i);
    };
    read(0);
#pragma unroll
    for (int n = 0; n < kGroups; n += kAhead) {
      if (Pass::kRecords && !kKeep && 8 * n >= layers.color) break;  // what is kept of a sample ends there
      float2 phases[kAhead][2];
#pragma unroll
      for (int i = 0; i < 2 * kAhead; i++) {
        const float4 of = next[i / 2];
        const float* of_row = phase + 4 * (n + i / 2) + 2 * (i % 2);
        phases[i / 2][i % 2] = make_float2(fmaf(of.x, of_row[0], of.y), fmaf(of.z, of_row[1], of.w));
      }
      float4 weight[kHeads > 0 ? kAhead : 1][2];
      if constexpr (kHeads > 0) {
#pragma unroll
        for (int i = 0; i < 2 * kAhead; i++) weight[i / 2][i % 2] = heads[8 * (n + i / 2) + Rows::column() + i % 2];
      }
      if (n + kAhead < kGroups) read(n + kAhead);
#pragma unroll
      for (int i = 0; i < 2 * kAhead; i++) {
        const int r = i % 2, group = n + i / 2, channel = 8 * group + Rows::column();
        const float2 of = phases[i / 2][r];
        const float x = sine<false>(of.x), y = sine<false>(of.y);
        if constexpr (kHeads == 1) sums[r][0] = fmaf(x, weight[i / 2][0].x, fmaf(y, weight[i / 2][1].x, sums[r][0]));
        if constexpr (kHeads == kHeadValues) {
          const float4 a = weight[i / 2][0], b = weight[i / 2][1];
          sums[r][0] = fmaf(x, a.y, fmaf(y, b.y, sums[r][0]));
          sums[r][1] = fmaf(x, a.z, fmaf(y, b.z, sums[r][1]));
          sums[r][2] = fmaf(x, a.w, fmaf(y, b.w, sums[r][2]));
        }
        if (kKeep) rows.put(r, group, Operand<half>::pack(x, y));
        if constexpr (Pass::kRecords) {
          pass.template keep_slopes<kWhole>(base, row(r), kKeep ? layer : kColorLayer, channel, of.x, of.y);
          if (!kKeep) pass.template keep_activations<kWhole>(base, row(r), channel, x, y);
        }
      }
    }
  }
  template <class Sums, class Pass>
  __device__ __forceinline__ void evaluate_colors(const Pass& pass, int base) {
    Sums phase;
    multiply(phase, pass, base, layers.products - 1);
    finish_colors(phase, pass, base);
  }

  // Sines of the colour layer: a head's colours, or all of a pass's before the first is stored.
  template <int kSums, class Pass>
  __device__ __forceinline__ void finish_colors(const float (&phase)[kSums], const Pass& pass, int base) const {
    const int layer = layers.products - 1;
    if constexpr (kHead) {
      HeadSums<kHeadValues> sums = {};
      finish<false, kHeadValues>(phase, pass, base, layer, sums);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float color[kHeadValues];
#pragma unroll
        for (int k = 0; k < kHeadValues; k++)
          color[k] = 1.0f / (1.0f + expf(-(sum_of_row(sums[r][k]) + layers.head_bias[k])));
        const int sample = base + row(r);
        if (Rows::lane() % 4 == 0 && sample < pass.size())
          pass.keep_color(pass[sample].at, color_row(layers), color[0], color[1], color[2]);
      }
    } else if constexpr (Pass::kRecords) {
      HeadSums<0> none;
      finish<false, 0>(phase, pass, base, layer, none);
    } else {
      uint32_t colors[kSums / 4][2];
#pragma unroll
      for (int n = 0; n < kSums / 4; n++) {
        const float4 of = modulation_of(layer, n);
#pragma unroll
        for (int r = 0; r < 2; r++)
          colors[n][r] = Operand<half>::pack(sine<false>(fmaf(of.x, phase[4 * n + 2 * r], of.y)),
                                             sine<false>(fmaf(of.z, phase[4 * n + 2 * r + 1], of.w)));
      }
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int sample = base + row(r);
        if (sample >= pass.size()) continue;
        const int at = pass[sample].at, columns = layers.color;
#pragma unroll
        for (int n = 0; n < kSums / 4; n++)
          if (8 * n < columns) pass.keep_pair(at, color_row(layers), 8 * n + Rows::column(), colors[n][r]);
      }
    }
  }

  template <class Pass>
  __device__ __forceinline__ void keep_density(const Pass& pass, int base, const float (&density)[2],
                                               const float (&ball)[2]) const {
    const float bias = *layers.density_bias;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int sample = base + row(r);
      if (Rows::lane() % 4 == 0 && sample < pass.size())
        pass.keep_density(pass[sample].at, density[r] + bias + ball[r]);
    }
  }

  // What the phase of a product's column group is made of, for the thread's two columns.
  __device__ __forceinline__ float4 modulation_of(int layer, int n) const {
    return *reinterpret_cast<const float4*>(modulation + layer * kFieldWidth + 8 * n + Rows::column());
  }
};

// By this name the environment may refuse the kernels of all streamed fields.
constexpr const char* kStreamedField = "streamed_field";
constexpr double kWorthWarpgroups =
    0.7;  // of a pass filled: with less, mma.sync's kernel would be as quick; a prediction

// How warpgroups march along rays; without rays where there is no kernel for such layers, where passes would be less
// filled than that, and where the environment refuses.
template <bool kHead>
Plan plan_warpgroups(const StreamedLayers& layers, const RaySettings& s, bool accurate) {
  using Field = WarpgroupStreamedField<kHead>;
  if (accurate || !Field::serves(layers) || !uses_warpgroups(kStreamedField)) return {};
  const Plan plan = plan_blocks<Field>(layers, s);
  return plan.filled > kWorthWarpgroups ? plan : Plan{};
}

}  // namespace cips3d

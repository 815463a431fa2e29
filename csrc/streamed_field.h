// Fields of sine layers whose weights stream through shared memory (streamed_product.h): a matrix of 256 x 256 does not
// fit beside the activations. A block has those of kRows samples in shared memory and replaces them layer by layer.
//
// With kHead, pi-GAN's: h1 = sin(g1 (W1 p + b1) + s1), hk = sin(gk (Wk hk-1 + bk) + sk), density = v · hL + c, colour =
// sigmoid(H sin(g (Wc [d, hL] + bc) + s) + e), for points p and ray directions d. Gains g and shifts s belong to an
// image, everything else to all of them: one megabyte.
//
// Without, the NeRF branch's where it is too wide for siren_field.h: two layers with gain and shift folded into an
// image's own matrices, the density of a ball besides, and the colour layer's activations as colours.
#pragma once
#include "ray_launch.h"
#include "siren_arithmetic.h"
#include "streamed_product.h"

namespace cips3d {

constexpr int kFieldWidth = kStreamColumns;  // most channels of a layer
constexpr int kHeadValues = 3;               // composited: a colour
constexpr double kWellFilled = 0.8;          // of what blocks evaluate
constexpr int kColorLayer = -1;              // instead of the number of one of the trunk's

// What the host gives, packed (see pack_field.cu). Products are those of the trunk's layers but the first, which has
// coordinates as its input and stays float32, and the colour layer's, whose matrix has one slab more with kHead: the
// columns of the direction. Channels beyond those of the tensors are zeros: the sine of a phase of 0 is 0.
struct StreamedLayers {
  Slabs slabs;                 // of a pass over kRows samples, of the first image
  int64_t image_halves;        // from an image's slabs to the next one's; 0: the same for all
  const float4* first;         // [B, kFieldWidth] x, y, z, offset of the first layer's phase
  const float2* modulation;    // [B, products, kFieldWidth] phase = x * product + y
  const float4* heads;         // [kFieldWidth] the density's weight, and with kHead the colour's three
  const float* density_bias;   // [1]
  const float* head_bias;      // [3], or null
  int products, width, color;  // widths in whole strips
  int channels;                // composited
  Ball ball;
};

// All that plans need to know of layers.
inline StreamedLayers layer_sizes(int depth, int width, int color) {
  StreamedLayers layers = {};
  layers.products = depth, layers.width = whole_strips(width), layers.color = whole_strips(color);
  return layers;
}

// kColumns: the most channels of a layer.
template <int kRows, int kSlab_, bool kAccurate, bool kHead, int kColumns = kFieldWidth>
struct StreamedField {
  static constexpr int kSlab = kSlab_;
  using Layers = StreamedLayers;
  using Color = std::conditional_t<kHead || kAccurate, float, half>;
  using Record = std::conditional_t<kAccurate, float, half>;  // what recorded_samples.h keeps
  // Behind the width the direction.
  using Product = StreamedProduct<kRows, kSlab, kColumns + (kHead ? kSlab : 0), kAccurate, half, kColumns>;
  using Team = BlockTeam;
  static constexpr int kFewestWarps = kStreamWarps, kMostWarps = kStreamWarps, kMostThreads = kStreamThreads;
  static constexpr bool kCoreMatrices = false;
  static constexpr int kParts = Product::kParts, kTiles = Product::kTiles, kStrips = Product::kStrips;
  static_assert(kRows <= kStreamThreads, "");

  __host__ __device__ static constexpr int color_row(const Layers& layers) {
    return kHead ? 4 : layers.color + kPadColors<Color>;
  }
  static int step(int) { return kRows; }
  static constexpr size_t bytes(int stages) {
    return Product::bytes(stages) + shared_bytes<float2>(stages * kFieldWidth) + shared_bytes<float4>(kFieldWidth) +
           shared_bytes<float4>(kRows) + shared_bytes<float>(4 * kStrips * kRows);
  }
  static constexpr int kRound = 0;  // nothing beside a pass
  static constexpr bool kFits = bytes(2) <= kSharedOfCode;
  static size_t bytes(const Layers& layers) { return bytes(layers.slabs.stages); }
  __device__ __forceinline__ static int channels(const Layers& layers) { return kHead ? kHeadValues : layers.channels; }

  const Layers& layers;
  Product product;
  float2* modulation;  // [stages, kFieldWidth] beside a product's last slab
  float4* heads;       // [kFieldWidth]
  float4* points;      // [kRows]
  float* sums;         // [4, kStrips, kRows] a strip's part of a row's raw density and raw colours
  int64_t image;

  __device__ __forceinline__ StreamedField(SharedArrays& shared, const Layers& given)
      : layers(given),
        product(shared),
        modulation(shared.take<float2>(given.slabs.stages * kFieldWidth)),
        heads(shared.take<float4>(kFieldWidth)),
        points(shared.take<float4>(kRows)),
        sums(shared.take<float>(4 * kStrips * kRows)),
        image(0) {
    product.take_stages(shared, given.slabs);
    for (int i = threadIdx.x; i < kFieldWidth; i += kStreamThreads) heads[i] = given.heads[i];
  }

  __device__ __forceinline__ void begin(int64_t of_image) { image = of_image; }

  // Densities and colours of a pass (SamplePass or RecordedPass), kRows samples at a time.
  template <class Pass>
  __device__ void evaluate(const Pass& pass) {
    const int trunk_slabs = layers.width / kSlab;
    const auto beside = [&](int slab, int stage) { copy_modulation(slab, stage); };
    const Slabs slabs = of_image();
    product.start(slabs, ceil_div(pass.size(), kRows), beside);
#pragma unroll 1
    for (int base = 0; base < pass.size(); base += kRows) {
      place(pass, base);
      __syncthreads();
      first_layer();
#pragma unroll 1
      for (int layer = 0; layer < layers.products; layer++) {
        const bool color = layer + 1 == layers.products;
        const bool has_columns = Product::strip() * kStrip < (color ? layers.color : layers.width);  // a whole warp has
        typename Product::Sums phase = {};
        int stage = 0;
#pragma unroll 1
        for (int k = 0; k < trunk_slabs + (kHead && color); k++) {
          stage = product.next(slabs, beside);
          if constexpr (Pass::kRecords) {
            if (k == 0) pass.template keep_inputs<Product>(base, layer, product.activations);
          }
          if (has_columns) product.multiply(color ? slabs.tail_columns : slabs.columns, phase, stage, k);
        }
        __syncthreads();  // all warps have read the activations
        if (!has_columns) continue;
        if (color) {
          if constexpr (kHead || Pass::kRecords)
            finish<false, kHead ? kHeadValues : 0>(phase, stage, pass, base, layer);
          else
            finish_colors(phase, stage, pass, base);
        } else if (layer + 2 == layers.products) {
          finish<true, 1>(phase, stage, pass, base, layer);
        } else {
          finish<true, 0>(phase, stage, pass, base, layer);
        }
      }
      __syncthreads();
      store(pass, base);
    }
  }

 private:
  __device__ __forceinline__ Slabs of_image() const {
    Slabs slabs = layers.slabs;
    if constexpr (!kHead) slabs.halves += image * layers.image_halves;
    return slabs;
  }

  // Starts to copy a product's modulation beside its last slab.
  __device__ __forceinline__ void copy_modulation(int slab, int stage) {
    const int trunk_slabs = layers.width / kSlab, count = layers.slabs.count;
    // With a head the colour layer has one slab more than the others.
    const bool last = slab + 1 == count || ((slab + 1) % trunk_slabs == 0 && !(kHead && slab + 2 == count));
    const int of = slab + 1 == count ? layers.products - 1 : slab / trunk_slabs;
    const float2* of_product = layers.modulation + (image * layers.products + of) * kFieldWidth;
    for (int i = 2 * threadIdx.x; last && i < kFieldWidth; i += 2 * kStreamThreads)
      cp_async_16(modulation + stage * kFieldWidth + i, of_product + i);
  }

  // The points of kRows samples of a pass, and with a head the directions of their rays as operands.
  template <class Pass>
  __device__ __forceinline__ void place(const Pass& pass, int base) {
    if (threadIdx.x >= kRows) return;
    const PassSample sample = pass[base + threadIdx.x];
    points[threadIdx.x] = make_float4(sample.point.x, sample.point.y, sample.point.z, 0.0f);
    if constexpr (!kHead) return;
    const float* direction = pass.direction(sample);
    uint4 part[2] = {};
    pack_activations<kAccurate>(direction[0], direction[1], part[0].x, part[1].x);
    pack_activations<kAccurate>(direction[2], 0.0f, part[0].y, part[1].y);
#pragma unroll
    for (int p = 0; p < kParts; p++) {
      uint4* row =
          reinterpret_cast<uint4*>(product.activations + (p * kRows + threadIdx.x) * Product::kRow + layers.width);
      row[0] = part[p];
      for (int i = 1; i < kSlab / 8; i++) row[i] = {};
    }
  }

  // In float32: an error of a coordinate is an error of every phase behind it.
  __device__ __forceinline__ void first_layer() {
    constexpr int kPairs = kColumns / 2, kRowsAtOnce = kStreamThreads / kPairs;
    const int channel = threadIdx.x % kPairs * 2;
    if (channel >= layers.width) return;
    const float4* of_channel = layers.first + image * kFieldWidth + channel;
    const float4 a = of_channel[0], b = of_channel[1];
#pragma unroll 4
    for (int row = threadIdx.x / kPairs; row < kRows; row += kRowsAtOnce) {
      const float4 p = points[row];
      product.put(row, channel, sine<kAccurate>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w)))),
                  sine<kAccurate>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w)))));
    }
  }

  // Sines of a product's phases: the next activations with kKeep, and for kHeads = 1 the density's sums, for 3 the
  // colours'. The modulation came with the product's last slab.
  template <bool kKeep, int kHeads, class Pass>
  __device__ __forceinline__ void finish(const typename Product::Sums& phase, int stage, const Pass& pass, int base,
                                         int layer) {
    if (Pass::kRecords && base + kRows > pass.size())
      finish_rows<kKeep, kHeads, false>(phase, stage, pass, base, layer);
    else
      finish_rows<kKeep, kHeads, true>(phase, stage, pass, base, layer);
  }
  template <bool kKeep, int kHeads, bool kWhole, class Pass>
  __device__ __forceinline__ void finish_rows(const typename Product::Sums& phase, int stage, const Pass& pass,
                                              int base, int layer) {
    const int lane = threadIdx.x % 32, strip = Product::strip(), first_row = Product::first_row();
    float head[kTiles][2][kHeads > 0 ? kHeads : 1] = {};
#pragma unroll
    for (int n = 0; n < kStrip / 8; n++) {
      const int channel = Product::first_column() + 8 * n;
      const float4 modulated = *reinterpret_cast<const float4*>(modulation + stage * kFieldWidth + channel);
      float4 a = {}, b = {};
      if (kHeads > 0) a = heads[channel], b = heads[channel + 1];
      const float of_x[4] = {a.x, a.y, a.z, a.w}, of_y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float (&sum)[4] = phase[n / 2][m][n % 2];
          const float phase_x = fmaf(modulated.x, sum[2 * r], modulated.y);
          const float phase_y = fmaf(modulated.z, sum[2 * r + 1], modulated.w);
          const float x = sine<kAccurate>(phase_x), y = sine<kAccurate>(phase_y);
          const int row = first_row + 16 * m + 8 * r;
          if (kKeep) product.put(row, channel, x, y);
          if constexpr (Pass::kRecords) {
            pass.template keep_slopes<kWhole>(base, row, kKeep ? layer : kColorLayer, channel, phase_x, phase_y);
            if (!kKeep) pass.template keep_activations<kWhole>(base, row, channel, x, y);
          }
#pragma unroll
          for (int k = 0; k < kHeads; k++) {
            constexpr int kFirst = kHeads == 1 ? 0 : 1;  // the density's weight comes before the colours'
            head[m][r][k] = fmaf(x, of_x[kFirst + k], fmaf(y, of_y[kFirst + k], head[m][r][k]));
          }
        }
    }
#pragma unroll
    for (int k = 0; k < kHeads; k++)
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {  // the four lanes of a row have a quarter of the strip's channels each
          float sum = head[m][r][k];
          sum += __shfl_xor_sync(~0u, sum, 1);
          sum += __shfl_xor_sync(~0u, sum, 2);
          const int value = kHeads == 1 ? 0 : 1 + k;
          if (lane % 4 == 0) sums[(value * kStrips + strip) * kRows + first_row + 16 * m + 8 * r] = sum;
        }
  }

  // The colour layer's sines, as colours of a pass's samples. Those of a tile are computed where their phases are, and
  // then stored: in the branches that store them, and behind other writes, each would wait for itself.
  template <class Pass>
  __device__ __forceinline__ void finish_colors(typename Product::Sums& phase, int stage, const Pass& pass, int base) {
    const int first = Product::first_column(), row = color_row(layers);
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int n = 0; n < kStrip / 8; n++) {
        const float4 modulated = *reinterpret_cast<const float4*>(modulation + stage * kFieldWidth + first + 8 * n);
        float (&value)[4] = phase[n / 2][m][n % 2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
          value[2 * r] = sine<kAccurate>(fmaf(modulated.x, value[2 * r], modulated.y));
          value[2 * r + 1] = sine<kAccurate>(fmaf(modulated.z, value[2 * r + 1], modulated.w));
          compute_here(value[2 * r]), compute_here(value[2 * r + 1]);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int sample = base + Product::first_row() + 16 * m + 8 * r;
        if (sample >= pass.size()) continue;
        const int at = pass[sample].at;
#pragma unroll
        for (int n = 0; n < kStrip / 8; n++) {
          const float (&value)[4] = phase[n / 2][m][n % 2];
          pass.keep_channels(at, row, first + 8 * n, value[2 * r], value[2 * r + 1]);
        }
      }
    }
  }

  // What finish() has left of kRows samples: their density, and with a head their colour's sigmoid.
  template <class Pass>
  __device__ __forceinline__ void store(const Pass& pass, int base) {
    const int row = threadIdx.x;
    if (row >= kRows || base + row >= pass.size()) return;
    float value[kHead ? 4 : 1];
#pragma unroll
    for (int k = 0; k < (kHead ? 4 : 1); k++) {
      const int strips = (k == 0 ? layers.width : layers.color) / kStrip;
      value[k] = k == 0 ? *layers.density_bias : layers.head_bias[k - 1];
      for (int strip = 0; strip < strips; strip++) value[k] += sums[(k * kStrips + strip) * kRows + row];
      if (k > 0) value[k] = 1.0f / (1.0f + expf(-value[k]));
    }
    const int at = pass[base + row].at;
    if constexpr (kHead) {
      pass.keep_density(at, value[0]);
      pass.keep_color(at, color_row(layers), value[1], value[2], value[3]);
    } else {
      const float4 p = points[row];
      pass.keep_density(at, value[0] + layers.ball.at(make_float3(p.x, p.y, p.z)));
    }
  }
};

// Three stages where that leaves room for enough rays to fill what a block evaluates at a time, else two.
template <class Field>
Plan plan_streamed(StreamedLayers& layers, const RaySettings& s) {
  Plan best;
  for (const int stages : {3, 2}) {
    layers.slabs.stages = stages;
    best = plan_blocks<Field>(layers, s);
    if (best.filled > kWellFilled) break;
  }
  return best;
}

template <class Field>
struct FieldType {
  using Type = Field;
};

// Calls f(FieldType, layers, plan) for the first of these fields whose passes the current device has room to fill, or
// for the last one; a plan without rays: for none.
template <class Field, class... Others, class F>
auto with_field(StreamedLayers layers, const RaySettings& s, F f) {
  const Plan plan = plan_streamed<Field>(layers, s);
  if constexpr (sizeof...(Others) > 0) {
    if (plan.filled <= kWellFilled) return with_field<Others...>(layers, s, f);
  }
  return f(FieldType<Field>{}, layers, plan);
}

}  // namespace cips3d

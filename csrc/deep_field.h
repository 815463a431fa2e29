// A deep field of sine layers on tensor cores, pi-GAN's: h1 = sin(g1 (W1 p + b1) + s1), h_k = sin(g_k (W_k h_{k-1} +
// b_k)
// + s_k), density = v · h_L + c, colour = sigmoid(H sin(g (Wc [d, h_L] + bc) + s) + e), for points p and ray directions
// d. Gains g and shifts s belong to an image, everything else to all of them.
//
// A block has the activations of kRows samples in shared memory and replaces them layer by layer; a weight matrix of
// 256 x 256 does not fit beside them, so slabs of kSlab of its columns stream through two or three stages. They are the
// same for all images, so that a device's L2 has to hold one megabyte, whatever the batch. A warp has half of the rows
// and 64 of the columns of a layer's product in registers: 32 matrix instructions for 8 reads of operands.
#pragma once
#include "ray_march.h"
#include "siren_arithmetic.h"

namespace cips3d {

constexpr int kDeepWidth = 256;  // most channels of a layer
constexpr int kStrip = 64;       // of a layer's channels: what one warp has; widths are filled up to whole strips
constexpr int kStrips = kDeepWidth / kStrip;
constexpr int kDeepWarps = 2 * kStrips, kDeepThreads = 32 * kDeepWarps;
constexpr int kDeepValues = 3;  // composited: a colour

// What the host gives, packed (see render_deep_rays.cu). Products are those of the trunk's layers but the first, which
// has coordinates as its input and stays float32, and the colour layer's, whose matrix has one slab more: the columns
// of the direction. Channels beyond those of the tensors are zeros: the sine of a phase of 0 is 0.
struct DeepLayers {
  const half* slabs;           // [slabs in order of use, high and low parts, columns(), kSlab]
  const float4* first;         // [B, kDeepWidth] x, y, z, offset of the first layer's phase
  const float2* modulation;    // [B, products, kDeepWidth] phase = x * product + y
  const float4* heads;         // [kDeepWidth] the density's weight, and the colour's three
  const float* density_bias;   // [1]
  const float* head_bias;      // [3]
  int products, width, color;  // widths in whole strips
  int stages;                  // 2 or 3

  __host__ __device__ int columns() const { return width > color ? width : color; }
};

template <int kRows_, int kSlab_, bool kAccurate>
struct DeepField {
  using Layers = DeepLayers;
  using Color = float;
  static constexpr int kRows = kRows_, kSlab = kSlab_;
  static constexpr int kColorRow = 4;
  static constexpr int kFewestWarps = kDeepWarps, kMostWarps = kDeepWarps, kMostThreads = kDeepThreads;
  static constexpr int kParts = kAccurate ? 2 : 1;  // high, low
  static constexpr int kTiles = kRows / 2 / 16;     // of 16 rows, of a warp
  static constexpr int kRow = kDeepWidth + kSlab + kPadHalves, kSlabRow = kSlab + kPadHalves;
  static constexpr int kStage = kParts * kDeepWidth * kSlabRow;  // halves
  static_assert(kRows <= kDeepThreads && kSlab % 16 == 0 && kStrip % kSlab == 0, "");

  static int step(int) { return kRows; }
  static size_t bytes(const Layers& layers) {
    return shared_bytes<half>(kParts * kRows * kRow) + shared_bytes<half>(layers.stages * kStage) +
           shared_bytes<float2>(layers.stages * kDeepWidth) + shared_bytes<float4>(kDeepWidth) +
           shared_bytes<float4>(kRows) + shared_bytes<float>(4 * kStrips * kRows);
  }
  __device__ __forceinline__ static int channels(const Layers&) { return kDeepValues; }

  const Layers& layers;
  half* activations;   // [kParts, kRows, kRow] the trunk's, and behind its width the direction
  half* slabs;         // [stages, kParts * columns, kSlabRow]
  float2* modulation;  // [stages, kDeepWidth] beside a product's last slab
  float4* heads;       // [kDeepWidth]
  float4* points;      // [kRows]
  float* sums;         // [4, kStrips, kRows] a strip's part of a row's raw density and raw colours
  int64_t image;
  int issued, used, slab_count;  // slabs on their way, multiplied, and to come in this pass

  __device__ __forceinline__ DeepField(SharedArrays& shared, const Layers& given)
      : layers(given),
        activations(shared.take<half>(kParts * kRows * kRow)),
        slabs(shared.take<half>(given.stages * kStage)),
        modulation(shared.take<float2>(given.stages * kDeepWidth)),
        heads(shared.take<float4>(kDeepWidth)),
        points(shared.take<float4>(kRows)),
        sums(shared.take<float>(4 * kStrips * kRows)),
        image(0),
        issued(0),
        used(0),
        slab_count(0) {
    for (int i = threadIdx.x; i < kDeepWidth; i += kDeepThreads) heads[i] = given.heads[i];
  }

  __device__ __forceinline__ void begin(int64_t of_image) { image = of_image; }

  // Densities and colours of a pass, kRows samples at a time.
  __device__ void evaluate(const SamplePass<float>& pass) {
    const int trunk_slabs = layers.width / kSlab;
    issued = used = 0;
    slab_count = ceil_div(pass.size(), kRows) * (layers.products * trunk_slabs + 1);
    for (int k = 0; k + 1 < layers.stages; k++) issue_slab();
#pragma unroll 1
    for (int base = 0; base < pass.size(); base += kRows) {
      place(pass, base);
      __syncthreads();
      first_layer();
#pragma unroll 1
      for (int product = 0; product < layers.products; product++) {
        const bool color = product + 1 == layers.products;
        const int strip = threadIdx.x / 32 % kStrips;
        const bool has_columns = strip * kStrip < (color ? layers.color : layers.width);  // the same in a whole warp
        float phase[kStrip / 16][kTiles][2][4] = {};
        int stage = 0;
#pragma unroll 1
        for (int k = 0; k < trunk_slabs + color; k++) {
          stage = next_slab();
          if (has_columns) multiply(phase, stage, k);
        }
        __syncthreads();  // all warps have read the activations
        if (!has_columns) continue;
        if (color)
          finish<false, kDeepValues>(phase, stage);
        else if (product + 2 == layers.products)
          finish<true, 1>(phase, stage);
        else
          finish<true, 0>(phase, stage);
      }
      __syncthreads();
      store(pass, base);
    }
  }

 private:
  // Starts the copy of the next slab of the pass, if there is one.
  __device__ __forceinline__ void issue_slab() {
    if (issued < slab_count) {
      const int trunk_slabs = layers.width / kSlab, count = layers.products * trunk_slabs + 1;
      const int slab = issued % count, stage = issued % layers.stages, rows = kParts * layers.columns();
      constexpr int kUnits = kSlab / 8;  // of 16 bytes a row
      const half* from = layers.slabs + static_cast<int64_t>(slab) * rows * kSlab;
      for (int i = threadIdx.x; i < rows * kUnits; i += kDeepThreads)
        cp_async_16(slabs + stage * kStage + i / kUnits * kSlabRow + i % kUnits * 8, from + i * 8);
      // The colour layer has one slab more than the others.
      const bool last = slab + 1 == count || ((slab + 1) % trunk_slabs == 0 && slab + 2 != count);
      const int product = slab + 1 == count ? layers.products - 1 : slab / trunk_slabs;
      const float2* of_product = layers.modulation + (image * layers.products + product) * kDeepWidth;
      for (int i = 2 * threadIdx.x; last && i < kDeepWidth; i += 2 * kDeepThreads)
        cp_async_16(modulation + stage * kDeepWidth + i, of_product + i);
    }
    cp_async_commit();  // of nothing, too: waiting counts groups
    issued++;
  }

  // Waits for the next slab and for all threads, and starts another one into the stage that has become free.
  __device__ __forceinline__ int next_slab() {
    if (layers.stages > 2)
      cp_async_wait<1>();
    else
      cp_async_wait<0>();
    __syncthreads();
    issue_slab();
    return used++ % layers.stages;
  }

  // The points of kRows samples of a pass, and the directions of their rays as operands.
  __device__ __forceinline__ void place(const SamplePass<float>& pass, int base) {
    if (threadIdx.x >= kRows) return;
    const PassSample sample = pass[base + threadIdx.x];
    points[threadIdx.x] = make_float4(sample.point.x, sample.point.y, sample.point.z, 0.0f);
    const float* direction = pass.scratch.ray + 6 * sample.ray + 3;
    uint4 part[2] = {};
    pack_activations<kAccurate>(direction[0], direction[1], part[0].x, part[1].x);
    pack_activations<kAccurate>(direction[2], 0.0f, part[0].y, part[1].y);
#pragma unroll
    for (int p = 0; p < kParts; p++) {
      uint4* row = reinterpret_cast<uint4*>(activations + (p * kRows + threadIdx.x) * kRow + layers.width);
      row[0] = part[p];
      for (int i = 1; i < kSlab / 8; i++) row[i] = {};
    }
  }

  // Writes two neighbouring activations of a row.
  __device__ __forceinline__ void put(int row, int channel, float x, float y) {
    uint32_t high, low = 0;
    pack_activations<kAccurate>(x, y, high, low);
    *reinterpret_cast<uint32_t*>(activations + row * kRow + channel) = high;
    if (kAccurate) *reinterpret_cast<uint32_t*>(activations + (kRows + row) * kRow + channel) = low;
  }

  // In float32: an error of a coordinate is an error of every phase behind it.
  __device__ __forceinline__ void first_layer() {
    constexpr int kPairs = kDeepWidth / 2, kRowsAtOnce = kDeepThreads / kPairs;
    const int channel = threadIdx.x % kPairs * 2;
    if (channel >= layers.width) return;
    const float4* of_channel = layers.first + image * kDeepWidth + channel;
    const float4 a = of_channel[0], b = of_channel[1];
#pragma unroll 4
    for (int row = threadIdx.x / kPairs; row < kRows; row += kRowsAtOnce) {
      const float4 p = points[row];
      put(row, channel, sine<kAccurate>(fmaf(a.x, p.x, fmaf(a.y, p.y, fmaf(a.z, p.z, a.w)))),
          sine<kAccurate>(fmaf(b.x, p.x, fmaf(b.y, p.y, fmaf(b.z, p.z, b.w)))));
    }
  }

  // phase[n][m] += the warp's rows of the activations times columns 16 n to 16 n + 15 of its strip, for slab k of a
  // product.
  __device__ __forceinline__ void multiply(float (&phase)[kStrip / 16][kTiles][2][4], int stage, int k) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const half* weight = slabs + stage * kStage + warp % kStrips * kStrip * kSlabRow;
    const half* row = activations + (warp / kStrips * 16 * kTiles + lane % 16) * kRow + kSlab * k + lane / 16 * 8;
#pragma unroll
    for (int column = 0; column < kSlab; column += 16) {
      uint32_t high[kTiles][4], low[kTiles][4] = {};
#pragma unroll
      for (int m = 0; m < kTiles; m++) {
        ldmatrix_x4(high[m], row + 16 * m * kRow + column);
        if (kAccurate) ldmatrix_x4(low[m], row + (kRows + 16 * m) * kRow + column);
      }
#pragma unroll
      for (int n = 0; n < kStrip / 16; n++)
        multiply_step<kTiles, kAccurate, kSlabRow>(phase[n], high, low, weight, layers.columns() * kSlabRow, 16 * n,
                                                   column, lane);
    }
  }

  // Sines of a product's phases: the next activations with kKeep, and for kHeads = 1 the density's sums, for 3 the
  // colours'. The modulation came with the product's last slab.
  template <bool kKeep, int kHeads>
  __device__ __forceinline__ void finish(const float (&phase)[kStrip / 16][kTiles][2][4], int stage) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, strip = warp % kStrips;
    const int first_row = warp / kStrips * 16 * kTiles + lane / 4;
    float head[kTiles][2][kHeads > 0 ? kHeads : 1] = {};
#pragma unroll
    for (int n = 0; n < kStrip / 8; n++) {
      const int channel = strip * kStrip + 8 * n + lane % 4 * 2;
      const float4 modulated = *reinterpret_cast<const float4*>(modulation + stage * kDeepWidth + channel);
      float4 a = {}, b = {};
      if (kHeads > 0) a = heads[channel], b = heads[channel + 1];
      const float of_x[4] = {a.x, a.y, a.z, a.w}, of_y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float (&product)[4] = phase[n / 2][m][n % 2];
          const float x = sine<kAccurate>(fmaf(modulated.x, product[2 * r], modulated.y));
          const float y = sine<kAccurate>(fmaf(modulated.z, product[2 * r + 1], modulated.w));
          if (kKeep) put(first_row + 16 * m + 8 * r, channel, x, y);
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

  // What finish() has left of kRows samples: their density, and their colour's sigmoid.
  __device__ __forceinline__ void store(const SamplePass<float>& pass, int base) {
    const int row = threadIdx.x;
    if (row >= kRows || base + row >= pass.size()) return;
    float value[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int strips = (k == 0 ? layers.width : layers.color) / kStrip;
      value[k] = k == 0 ? *layers.density_bias : layers.head_bias[k - 1];
      for (int strip = 0; strip < strips; strip++) value[k] += sums[(k * kStrips + strip) * kRows + row];
      if (k > 0) value[k] = 1.0f / (1.0f + expf(-value[k]));
    }
    const int at = pass[base + row].at;
    pass.scratch.density[at] = value[0];
    *reinterpret_cast<float4*>(pass.scratch.colors + at * kColorRow) = make_float4(value[1], value[2], value[3], 0.0f);
  }
};

}  // namespace cips3d

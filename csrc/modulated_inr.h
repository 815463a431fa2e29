// CIPS-3D's INR on tensor cores: blocks of two modulated layers y = lrelu((x ⊙ m) W ⊙ d), the input of a block added to
// its output from block skip_from on, and colours from block rgb_from on, Σ y · rgbᵀ. Modulations m and demodulations d
// belong to an image, everything else to all of them.
//
// A block of threads takes kRows pixels through all layers: their activations stay in shared memory and are replaced
// layer by layer, the weights stream (streamed_product.h). Nothing of a layer goes to device memory but a block's input
// where it is a skip, and that not far: every block of threads has a place of its own for kRows pixels, all of which
// L2 holds. A thread reads there what it wrote itself, so nothing has to wait for it.
//
// 128 pixels and 512 columns are 65 536 sums, all the registers there are. So the columns come in two chunks of 256:
// the activations of the first chunk wait in registers, as halves, until all warps have read their inputs for the
// second.
//
// Range. Activations are float16 (high and low parts in the accurate mode), whose range is short. But layers without
// biases are homogeneous: the scale of a pixel's features is the scale of all that follows. Rows are scaled by powers
// of two of their own, which change nothing but the exponents, such that their largest number is in [32, 64) in front
// of every block. A column of W ⊙ m ⊙ d has at most unit norm, so a layer makes nothing larger than √512 times the
// largest of its inputs; the scale is applied one layer behind the output that it was measured on, and even then
// everything stays below 64 · 512 + 64 < 65 504: halves cannot overflow. Modulations are scaled to at most 1, columns
// of weights to [2^14, 2^15), and the demodulation takes both away again.
#pragma once
#include "ops.h"
#include "streamed_product.h"

namespace cips3d {

constexpr int kInrWidth = 512;  // most channels, of features too
constexpr int kInrChunks = kInrWidth / kStreamColumns;

struct InrLayers {
  Slabs slabs;                    // of a pass over kRows pixels
  const float* features;          // [B, pixels, channels]
  const float* first_modulation;  // [B, channels] scaled, of the features
  const float2* scales;      // [B, products, kInrWidth] of a product (demodulation), and of the activation made of it
                             // (the next layer's modulation, scaled)
  const float4* rgb_weight;  // [blocks with colours, kInrWidth] red, green, blue, 0
  uint4* skips;              // [blocks of threads, InrPass::kSkipUnits]
  float* rgb;                // [B, pixels, 3]
  int images, pixels;
  int channels, width;  // of the features; of the layers, in whole strips
  int products;         // layers, two a block
  int skip_from, rgb_from;
  float slope;  // of the leaky ReLU, 0 to 1

  __device__ __forceinline__ bool has_rgb(int layer) const { return layer % 2 == 1 && layer / 2 >= rgb_from; }
  __device__ __forceinline__ int64_t scales_of(int image, int layer) const {
    return (static_cast<int64_t>(image) * products + layer) * kInrWidth;
  }
};

// The power of two that brings a row's largest number to [32, 64); 1 for a row of zeros.
__device__ __forceinline__ float row_scale(float largest) {
  return largest > 0.0f ? operand_scale(largest) * 0x1p-9f : 1.0f;
}

template <int kRows, int kSlab, bool kAccurate>
struct InrPass {
  using Product = StreamedProduct<kRows, kSlab, kInrWidth, kAccurate>;
  using Sums = typename Product::Sums;
  static constexpr int kParts = Product::kParts, kTiles = Product::kTiles, kStrips = Product::kStrips;
  static constexpr int kGroups = kStrip / 8;  // of eight columns, of a warp
  // A thread finishes the rows of two tiles at a time: what it adds up a row takes fewer registers so.
  static constexpr int kPairRows = kTiles == 1 ? 2 : 4, kRowGroups = 2 * kTiles / kPairRows;
  static constexpr int kSkipWords = kPairRows * kParts;  // a thread's, of a group: half2, or float2 if accurate
  static constexpr int kGroupUnits = kSkipWords / 4 * kStreamThreads;  // of 16 bytes
  static constexpr int kSkipUnits = kInrChunks * kRowGroups * kGroups * kGroupUnits;
  static_assert(kSkipWords % 4 == 0 && kRows <= kStreamThreads, "");
  using Held = uint32_t[kGroups][kTiles][2][kParts];  // activations of a chunk

  static constexpr size_t bytes(int stages) {
    return Product::bytes(stages) + shared_bytes<float>(3 * kStrips * kRows) + 3 * shared_bytes<float>(kRows);
  }
  static constexpr size_t kFewestBytes = bytes(2);

  const InrLayers& layers;
  Product product;
  float* sums;     // [3, kStrips, kRows] a strip's part of a pixel's colours
  float* factor;   // [kRows] of the scale, new in this block
  float* inverse;  // [kRows] of the scale
  int* largest;    // [kRows] of a block's output so far, the bits of a float that is not negative
  int tile;        // of kRows pixels of an image, counted through all images

  __device__ __forceinline__ InrPass(SharedArrays& shared, const InrLayers& given)
      : layers(given),
        product(shared),
        sums(shared.take<float>(3 * kStrips * kRows)),
        factor(shared.take<float>(kRows)),
        inverse(shared.take<float>(kRows)),
        largest(shared.take<int>(kRows)),
        tile(blockIdx.x) {
    product.take_stages(shared, given.slabs);
    for (int i = threadIdx.x; i < 3 * kStrips * kRows; i += kStreamThreads) sums[i] = 0.0f;
  }

  // Every gridDim.x-th tile.
  __device__ void run() {
    const int tiles = layers.images * tiles_an_image();
    product.start(layers.slabs, ceil_div<int>(tiles - tile, gridDim.x), NothingBeside());
#pragma unroll 1
    for (; tile < tiles; tile += gridDim.x) {
      place();
      if (layers.skip_from == 0 || layers.channels == 0) __syncthreads();  // without slabs finish() waits for nobody
      if (layers.skip_from == 0) place_skips();
#pragma unroll 1
      for (int layer = 0; layer < layers.products; layer++) {
        prefetch(layer);
        Held held;
        const bool two_chunks = layers.width > kStreamColumns;
        if (two_chunks) {
          Sums chunk = {};
          accumulate(chunk, layer, 0);
          finish<true>(chunk, held, layer, 0);
        }
        Sums chunk = {};
        accumulate(chunk, layer, two_chunks);
        __syncthreads();  // all warps have read the activations
        if (two_chunks) release(held);
        finish<false>(chunk, held, layer, two_chunks);
        if (layer % 2 == 0) continue;
        __syncthreads();  // the block's output is complete
        if (layer + 1 < layers.products) rescale();
      }
      store();
    }
    cp_async_wait<0>();
  }

 private:
  // Computed anew wherever they are needed: registers are few.
  __device__ __forceinline__ int tiles_an_image() const { return ceil_div(layers.pixels, kRows); }
  __device__ __forceinline__ int image() const { return tile / tiles_an_image(); }
  // Where a row of the tile is among the pixels of all images; negative beyond those of the image.
  __device__ __forceinline__ int64_t pixel_of(int row) const {
    const int pixel = tile % tiles_an_image() * kRows + row;
    return pixel < layers.pixels ? static_cast<int64_t>(image()) * layers.pixels + pixel : -1;
  }
  // Of this block of threads: [kInrChunks, kRowGroups, kGroups, kGroupUnits].
  __device__ __forceinline__ uint4* skips(int chunk, int row_group, int group) const {
    return layers.skips + static_cast<int64_t>(blockIdx.x) * kSkipUnits +
           ((chunk * kRowGroups + row_group) * kGroups + group) * kGroupUnits;
  }

  __device__ __forceinline__ bool has_columns(int chunk) const {
    return chunk * kStreamColumns + Product::strip() * kStrip < layers.width;  // the same in a whole warp
  }

  // The features of a tile as the first operand, and the scales of its rows.
  __device__ __forceinline__ void place() {
    constexpr int kLanes = kStreamThreads / kRows;  // neighbours that share a row
    const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const int64_t pixel = pixel_of(row);
    const int count = pixel < 0 ? 0 : layers.channels;
    const float* from = layers.features + pixel * count;
    const float* modulation = layers.first_modulation + static_cast<int64_t>(image()) * layers.channels;
    float most = 0.0f;
    for (int c = lane; c < count; c += kLanes) most = fmaxf(most, fabsf(from[c]));
#pragma unroll
    for (int bit = kLanes / 2; bit > 0; bit /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, bit));
    const float scale = row_scale(most);
    for (int c = 2 * lane; c < ceil_div(layers.channels, kSlab) * kSlab; c += 2 * kLanes) {
      const float x = c < count ? scale * from[c] * modulation[c] : 0.0f;
      const float y = c + 1 < count ? scale * from[c + 1] * modulation[c + 1] : 0.0f;
      product.put(row, c, x, y);
    }
    if (lane > 0) return;
    factor[row] = 1.0f, inverse[row] = inverse_scale(scale), largest[row] = 0;
  }

  // The features as the skip of block 0.
  __device__ __forceinline__ void place_skips() {
#pragma unroll 1
    for (int i = 0; i < kInrChunks * kRowGroups * kGroups; i++) {
      const int index = i / (kRowGroups * kGroups), row_group = i / kGroups % kRowGroups, n = i % kGroups;
      const int channel = index * kStreamColumns + Product::first_column() + 8 * n;
      uint32_t words[kSkipWords];
#pragma unroll
      for (int k = 0; k < kPairRows; k++) {
        const int row = Product::first_row() + 8 * (row_group * kPairRows + k);
        const int64_t pixel = pixel_of(row);
        const int count = pixel < 0 ? 0 : layers.channels;
        const float* from = layers.features + pixel * count;
        const float scale = inverse_scale(inverse[row]);
        const float x = channel < count ? scale * from[channel] : 0.0f;
        const float y = channel + 1 < count ? scale * from[channel + 1] : 0.0f;
        keep(words, k, x, y);
      }
      write_skips(words, skips(index, row_group, n));
    }
  }

  // Prefetches into the cache, during a layer's product, what finish() reads of its columns: there are no registers to
  // load it early.
  __device__ __forceinline__ void prefetch(int layer) const {
    constexpr int kScaleLines = kInrWidth * sizeof(float2) / kCacheLine;
    constexpr int kColorLines = kInrWidth * sizeof(float4) / kCacheLine;
    static_assert(kScaleLines + kColorLines <= kStreamThreads, "a line a thread");
    int here = tile, line = threadIdx.x;
    compute_here(here);  // or the image would be kept until finish()
    const void* from = layers.scales + layers.scales_of(here / tiles_an_image(), layer);
    if (line >= kScaleLines) {
      line -= kScaleLines;
      if (line >= kColorLines || !layers.has_rgb(layer)) return;
      from = layers.rgb_weight + (layer / 2 - layers.rgb_from) * kInrWidth;
    }
    prefetch_line(static_cast<const char*>(from) + line * kCacheLine);
  }

  // Adds up the product of a layer, for a chunk of its columns.
  __device__ __forceinline__ void accumulate(Sums& chunk, int layer, int index) {
    const int slabs = ceil_div(layer == 0 ? layers.channels : layers.width, kSlab);
    const bool multiplies = has_columns(index);
#pragma unroll 1
    for (int k = 0; k < slabs; k++) {
      const int stage = product.next(layers.slabs, NothingBeside());
      if (multiplies) product.multiply(layers.slabs.columns, chunk, stage, k);
    }
  }

  // What follows a product: activations for the next one, which kHold keeps in registers; skips; colours; and the
  // largest number of each row.
  template <bool kHold>
  __device__ __forceinline__ void finish(const Sums& chunk, Held& held, int layer, int index) {
    if (!has_columns(index)) return;
#pragma unroll
    for (int row_group = 0; row_group < kRowGroups; row_group++)
      finish_rows<kHold>(chunk, held, layer, index, row_group);
  }

  template <bool kHold>
  __device__ __forceinline__ void finish_rows(const Sums& chunk, Held& held, int layer, int index, int row_group) {
    const int block = layer / 2, first_row = Product::first_row() + 8 * kPairRows * row_group;
    const bool ends_block = layer % 2 == 1, last = layer + 1 == layers.products;
    const bool has_skip = ends_block && block >= layers.skip_from, colored = layers.has_rgb(layer);
    const bool is_skip = ends_block && !last && block + 1 >= layers.skip_from;
    const int first_channel = index * kStreamColumns + Product::first_column();
    const float2* scales = layers.scales + layers.scales_of(image(), layer) + first_channel;
    const float4* rgb_weight = layers.rgb_weight + (colored ? block - layers.rgb_from : 0) * kInrWidth + first_channel;
    float rescale[kPairRows], most[kPairRows] = {}, rgb[kPairRows][3] = {};
#pragma unroll
    for (int k = 0; k < kPairRows; k++) rescale[k] = factor[first_row + 8 * k];
#pragma unroll
    for (int n = 0; n < kGroups; n++) {
      const float4 scale = *reinterpret_cast<const float4*>(scales + 8 * n);
      float4 a = {}, b = {};
      if (colored) a = rgb_weight[8 * n], b = rgb_weight[8 * n + 1];
      uint4* skip = skips(index, row_group, n);
      uint32_t words[kSkipWords] = {};
      if (has_skip) read_skips(words, skip);
#pragma unroll
      for (int k = 0; k < kPairRows; k++) {
        const int m = (row_group * kPairRows + k) / 2, r = k % 2;
        const float (&sum)[4] = chunk[n / 2][m][n % 2];
        float x = sum[2 * r] * scale.x, y = sum[2 * r + 1] * scale.z;
        if (!ends_block) x *= rescale[k], y *= rescale[k];
        x = fmaxf(x, layers.slope * x), y = fmaxf(y, layers.slope * y);
        if (has_skip) {
          const float2 before = kept(words, k);
          x = fmaf(rescale[k], before.x, x), y = fmaf(rescale[k], before.y, y);
        }
        if (is_skip) keep(words, k, x, y);
        if (ends_block) most[k] = fmaxf(most[k], fmaxf(fabsf(x), fabsf(y)));
        if (colored) {
          rgb[k][0] = fmaf(x, a.x, fmaf(y, b.x, rgb[k][0]));
          rgb[k][1] = fmaf(x, a.y, fmaf(y, b.y, rgb[k][1]));
          rgb[k][2] = fmaf(x, a.z, fmaf(y, b.z, rgb[k][2]));
        }
        uint32_t high, low = 0;
        pack_activations<kAccurate>(x * scale.y, y * scale.w, high, low);
        if (kHold) {
          held[n][m][r][0] = high;
          if (kAccurate) held[n][m][r][kParts - 1] = low;
        } else {
          product.put(first_row + 8 * k, first_channel + 8 * n, high, low);
        }
      }
      if (is_skip) write_skips(words, skip);
    }
    if (!ends_block) return;
    // The four lanes of a row have a quarter of the strip's channels each.
#pragma unroll
    for (int k = 0; k < kPairRows; k++) {
      const int row = first_row + 8 * k;
      most[k] = fmaxf(most[k], __shfl_xor_sync(~0u, most[k], 1));
      most[k] = fmaxf(most[k], __shfl_xor_sync(~0u, most[k], 2));
      if (threadIdx.x % 4 == 0) atomicMax(largest + row, static_cast<int>(__float_as_uint(most[k])));
#pragma unroll
      for (int c = 0; colored && c < 3; c++) {
        float part = rgb[k][c];
        part += __shfl_xor_sync(~0u, part, 1);
        part += __shfl_xor_sync(~0u, part, 2);
        if (threadIdx.x % 4 == 0) sums[(c * kStrips + Product::strip()) * kRows + row] += part * inverse[row];
      }
    }
  }

  // Writes the activations of the first chunk.
  __device__ __forceinline__ void release(const Held& held) {
#pragma unroll
    for (int n = 0; n < kGroups; n++)
#pragma unroll
      for (int k = 0; k < 2 * kTiles; k++)
        product.put(Product::first_row() + 8 * k, Product::first_column() + 8 * n, held[n][k / 2][k % 2][0],
                    held[n][k / 2][k % 2][kParts - 1]);
  }

  // The scale of a block's output, applied behind the next product.
  __device__ __forceinline__ void rescale() {
    const int row = threadIdx.x;
    if (row >= kRows) return;
    factor[row] = row_scale(__uint_as_float(static_cast<uint32_t>(largest[row])));
    inverse[row] *= inverse_scale(factor[row]);
    largest[row] = 0;
  }

  // Skips: pairs of numbers, halves or, in the accurate mode, floats.
  __device__ __forceinline__ static void keep(uint32_t (&words)[kSkipWords], int pair, float x, float y) {
    if (kAccurate)
      words[2 * pair % kSkipWords] = __float_as_uint(x), words[(2 * pair + 1) % kSkipWords] = __float_as_uint(y);
    else
      words[pair] = Operand<half>::pack(x, y);
  }
  __device__ __forceinline__ static float2 kept(const uint32_t (&words)[kSkipWords], int pair) {
    if (!kAccurate) return Operand<half>::unpack(words[pair]);
    return {__uint_as_float(words[2 * pair % kSkipWords]), __uint_as_float(words[(2 * pair + 1) % kSkipWords])};
  }
  __device__ __forceinline__ static void read_skips(uint32_t (&words)[kSkipWords], const uint4* from) {
#pragma unroll
    for (int i = 0; i < kSkipWords; i += 4) {
      const uint4 unit = from[i / 4 * kStreamThreads + threadIdx.x];
      words[i] = unit.x, words[i + 1] = unit.y, words[i + 2] = unit.z, words[i + 3] = unit.w;
    }
  }
  __device__ __forceinline__ static void write_skips(const uint32_t (&words)[kSkipWords], uint4* to) {
#pragma unroll
    for (int i = 0; i < kSkipWords; i += 4)
      to[i / 4 * kStreamThreads + threadIdx.x] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
  }

  // The colours that finish() has left.
  __device__ __forceinline__ void store() {
    const int row = threadIdx.x, strips = min(kStrips, layers.width / kStrip);
    if (row >= kRows) return;
    const int64_t pixel = pixel_of(row);
#pragma unroll
    for (int c = 0; c < 3; c++) {
      float total = 0.0f;
      for (int strip = 0; strip < strips; strip++) {
        float& part = sums[(c * kStrips + strip) * kRows + row];
        total += part, part = 0.0f;
      }
      if (pixel >= 0) layers.rgb[pixel * 3 + c] = total;
    }
  }
};

template <class Pass>
__global__ void __launch_bounds__(kStreamThreads, 1) modulated_inr_kernel(const InrLayers layers) {
  if constexpr (Pass::kFewestBytes > kSharedOfCode) {
    __trap();
  } else {
    SharedArrays shared;
    Pass(shared, layers).run();
  }
}

}  // namespace cips3d

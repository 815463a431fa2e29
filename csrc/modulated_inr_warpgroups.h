// The pass of modulated_inr.h for compute capability 9.0: the same arithmetic, other instructions.
//
// Matrix instructions of four warps (wgmma) read both operands from shared memory and are the only ones that reach the
// full rate there. Two warpgroups take 64 pixels each through all layers and share the weights, which one thread copies
// in bulk. All channels of a pixel belong to the four lanes of a row: nothing but the weights is waited for together,
// and while one of them works on activations the other one multiplies. The stages between them let one be
// 128 input channels ahead.
//
// In the accurate mode high and low parts of 64 pixels take all the room. Both warpgroups have these pixels, and each
// half of a chunk's columns: they meet wherever activations are replaced, and what is one number a pixel they put
// together.
#pragma once
#include "modulated_inr.h"
#include "warpgroup_rows.h"

namespace cips3d {

template <bool kAccurate>
struct WarpgroupPass {
  static constexpr int kParts = kAccurate ? 2 : 1, kSlab = 32 / kParts, kStages = 5;
  using Rows = WarpgroupRows<kSlab>;
  static constexpr int kWarpgroups = 2, kGroupRows = Rows::kRows;
  static constexpr int kAllRows = kWarpgroups * kGroupRows;  // of the warpgroups, those of the same pixels too
  static constexpr int kRows = kAllRows / kParts;            // of a tile
  static constexpr int kThreads = kWarpgroups * Rows::kThreads, kWarps = kThreads / 32;
  static constexpr int kGroupHalves = kGroupRows * kInrWidth, kStageHalves = kParts * Rows::kStageHalves;
  // Columns of a chunk that a warpgroup has, and the groups of eight that they are.
  static constexpr int kColumns = kStreamColumns / kParts, kColumnGroups = kColumns / 8;
  // A thread's unit of 16 bytes of skips, two rows of so many column groups: halves, or floats if accurate.
  static constexpr int kUnitGroups = 2 / kParts, kUnits = kColumnGroups / kUnitGroups;
  static constexpr int kSkipUnits = kInrChunks * kUnits * kThreads;
  using Stages = BulkStages<kStages, kStageHalves, kWarps, true>;
  static constexpr size_t kBytes = shared_bytes<half>(kWarpgroups * kGroupHalves) + Stages::kBytes +
                                   3 * shared_bytes<float>(kAllRows) + shared_bytes<float>(2 * kAllRows) +
                                   shared_bytes<float2>(kWarpgroups * kColumns) +
                                   shared_bytes<float4>(kWarpgroups * kColumns) + shared_bytes<uint64_t>(kWarpgroups);

  using Sums = float[kColumns / 2];                 // of a chunk: [column group, r, 2], see warpgroup.h
  using Held = uint32_t[kColumnGroups][2][kParts];  // activations of a chunk, pairs of halves of rows r

  const InrLayers& layers;
  Rows rows;        // kInrWidth channels of the warpgroup's pixels; low parts kGroupHalves behind
  Stages weights;   // slabs of all layers, once more for every tile
  float* inverse;   // [kAllRows] of the scales
  float* rgb;       // [kAllRows, 3]
  float* exchange;  // [kAllRows] the largest number of a row so far, for the other warpgroup with that row
  // Of the columns that a warpgroup multiplies; there before its product is. From memory they would be waited for in
  // every column group, since there are no registers to have them early.
  float2* scales;       // [kWarpgroups, kColumns] see InrLayers
  float4* rgb_weight;   // [kWarpgroups, kColumns]
  uint64_t* described;  // [kWarpgroups] whose phases end when both are there
  int before;           // tiles of all blocks, up to now
  float factor[2];      // of the scales of the thread's rows, new in this block
  float largest[2];     // of a block's output so far, of the thread's columns

  __device__ __forceinline__ WarpgroupPass(SharedArrays& shared, const InrLayers& given)
      : layers(given),
        rows{shared.take<half>(kWarpgroups * kGroupHalves) + (kAccurate ? 0 : warpgroup() * kGroupHalves)},
        weights(shared),
        inverse(shared.take<float>(kAllRows)),
        rgb(shared.take<float>(3 * kAllRows)),
        exchange(shared.take<float>(kAllRows)),
        scales(shared.take<float2>(kWarpgroups * kColumns)),
        rgb_weight(shared.take<float4>(kWarpgroups * kColumns)),
        described(shared.take<uint64_t>(kWarpgroups)),
        before(0) {}

  // Of slab i of all tiles.
  __device__ __forceinline__ auto copy() const {
    return [this](int i, const auto& stage) {
      stage.template fill<kStageHalves * sizeof(half)>(layers.slabs.halves +
                                                       static_cast<int64_t>(i % layers.slabs.count) * kStageHalves);
    };
  }

  // Every gridDim.x-th tile. The blocks of a cluster go through as many, for the weights that they share; where there
  // is none left for one of them, it computes the last one again.
  __device__ __forceinline__ void run() {
    if (threadIdx.x == 0)
      for (int group = 0; group < kWarpgroups; group++) phase_barrier_init(described + group, 1);
    weights.init();
    cluster_sync();
    const int of_first = static_cast<int>(blockIdx.x - cluster_rank());
    weights.begin(of_first < tiles() ? ceil_div<int>(tiles() - of_first, gridDim.x) * layers.slabs.count : 0, copy());
#pragma unroll 1
    for (; next_tile() - static_cast<int>(cluster_rank()) < tiles(); before += gridDim.x) {
      place();
      if (layers.skip_from == 0) place_skips();
#pragma unroll 1
      for (int layer = 0; layer < layers.products; layer++) {
        publish();
        Held held;
        const bool two_chunks = layers.width > kStreamColumns;
        if (two_chunks) {
          Sums sums;
          describe(layer, 0);
          accumulate(sums, layer);
          finish<true>(sums, held, layer, 0);
          Rows::publish();  // all its warps have read what describes the chunk, before a copy of the other proxy
                            // replaces it
        }
        Sums sums;
        describe(layer, two_chunks);
        accumulate(sums, layer);
        meet();  // all warps have read the activations
        if (two_chunks) release(held);
        finish<false>(sums, held, layer, two_chunks);
        if (layer % 2 == 1) rescale();
      }
      if (next_tile() < tiles()) store();
      if (kAccurate) __syncthreads();  // what is one number a pixel has been read, and may be written anew
    }
    cluster_sync();  // no copy that this block has started is still on its way to another one
  }

 private:
  __device__ __forceinline__ static int lane() { return Rows::lane(); }
  __device__ __forceinline__ static int warpgroup() { return threadIdx.x / Rows::kThreads; }
  __device__ __forceinline__ static int column() { return Rows::column(); }
  // The first column group of a chunk that the warpgroup has.
  __device__ __forceinline__ static int first_group() { return kAccurate ? warpgroup() * kColumnGroups : 0; }

  // All warps with the same pixels have come.
  __device__ __forceinline__ static void meet() { kAccurate ? __syncthreads() : warpgroup_sync(); }
  // And what they have written is there for products; what they have read may be overwritten by bulk copies.
  __device__ __forceinline__ static void publish() {
    fence_for_async_reads();
    meet();
  }

  // Computed anew wherever they are needed: registers are few.
  __device__ __forceinline__ int tiles_an_image() const { return ceil_div(layers.pixels, kRows); }
  __device__ __forceinline__ int tiles() const { return layers.images * tiles_an_image(); }
  __device__ __forceinline__ int next_tile() const { return static_cast<int>(blockIdx.x) + anew(before); }
  // Of kRows pixels of an image, counted through all images.
  __device__ __forceinline__ int tile() const { return min(next_tile(), tiles() - 1); }
  __device__ __forceinline__ int image() const { return tile() / tiles_an_image(); }
  // Row r of the thread, 0 or 1, among those of all warpgroups.
  __device__ __forceinline__ static int row(int r) { return warpgroup() * kGroupRows + Rows::row(r); }
  // Where it is among the pixels of all images; negative beyond those of the image.
  __device__ __forceinline__ int64_t pixel_of(int r) const {
    const int pixel = tile() % tiles_an_image() * kRows + (kAccurate ? Rows::row(r) : row(r));
    return pixel < layers.pixels ? static_cast<int64_t>(image()) * layers.pixels + pixel : -1;
  }
  // The thread's units of column groups, and what they have of group j of a unit.
  __device__ __forceinline__ uint4* skips(int chunk, int unit) const {
    return layers.skips + static_cast<int64_t>(blockIdx.x) * kSkipUnits + (chunk * kUnits + unit) * kThreads +
           threadIdx.x;
  }
  using Words = uint32_t[4];
  __device__ __forceinline__ static float2 kept(const Words& words, int j, int r) {
    return kAccurate ? make_float2(__uint_as_float(words[2 * r]), __uint_as_float(words[2 * r + 1]))
                     : Operand<half>::unpack(words[2 * j + r]);
  }
  __device__ __forceinline__ static void keep(Words& words, int j, int r, float x, float y) {
    if (kAccurate)
      words[2 * r] = __float_as_uint(x), words[2 * r + 1] = __float_as_uint(y);
    else
      words[2 * j + r] = Operand<half>::pack(x, y);
  }

  __device__ __forceinline__ void put(int r, int n, const uint32_t (&parts)[kParts]) const {
#pragma unroll
    for (int part = 0; part < kParts; part++) Rows{rows.activations + part * kGroupHalves}.put(r, n, parts[part]);
  }
  __device__ __forceinline__ static void pack(float x, float y, uint32_t (&parts)[kParts]) {
    uint32_t low = 0;
    pack_activations<kAccurate>(x, y, parts[0], low);
    if (kAccurate) parts[kParts - 1] = low;
  }

  // The features of a tile as the first operand, and the scales of its rows.
  __device__ __forceinline__ void place() {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int64_t pixel = pixel_of(r);
      const int count = pixel < 0 ? 0 : layers.channels;
      const float* from = layers.features + pixel * count;
      const float* modulation = layers.first_modulation + static_cast<int64_t>(image()) * layers.channels;
      float most = 0.0f;
      for (int c = lane() % 4; c < count; c += 4) most = fmaxf(most, fabsf(from[c]));
      const float scale = row_scale(largest_of_row(most));
      // With the same pixels, warpgroups take turns.
      const int groups = ceil_div(layers.channels, kSlab) * kSlab / 8;
      for (int n = kAccurate ? warpgroup() : 0; n < groups; n += kParts) {
        const int c = 8 * n + column();
        const float x = c < count ? scale * from[c] * modulation[c] : 0.0f;
        const float y = c + 1 < count ? scale * from[c + 1] * modulation[c + 1] : 0.0f;
        uint32_t parts[kParts];
        pack(x, y, parts);
        put(r, n, parts);
      }
      factor[r] = 1.0f, largest[r] = 0.0f;
      if (lane() % 4 > 0) continue;
      inverse[row(r)] = inverse_scale(scale);
      for (int c = 0; c < 3; c++) rgb[3 * row(r) + c] = 0.0f;
    }
    __syncwarp();
  }

  // The features as the skip of block 0.
  __device__ __forceinline__ void place_skips() const {
#pragma unroll 1
    for (int i = 0; i < layers.width / kStreamColumns * kUnits; i++) {
      const int chunk = i / kUnits, unit = i % kUnits;
      const int first = chunk * kStreamColumns + 8 * (first_group() + kUnitGroups * unit) + column();
      Words words;
#pragma unroll
      for (int k = 0; k < 2 * kUnitGroups; k++) {
        const int64_t pixel = pixel_of(k % 2);
        const int count = pixel < 0 ? 0 : layers.channels, c = first + k / 2 * 8;
        const float* from = layers.features + pixel * count;
        const float scale = inverse_scale(inverse[row(k % 2)]);
        keep(words, k / 2, k % 2, c < count ? scale * from[c] : 0.0f, c + 1 < count ? scale * from[c + 1] : 0.0f);
      }
      *skips(chunk, unit) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

  // Starts to copy the scales and the colours' weights of a chunk, which none of the warpgroup reads any more.
  __device__ __forceinline__ void describe(int layer, int chunk) const {
    constexpr int kScaleBytes = kColumns * sizeof(float2), kColorBytes = kColumns * sizeof(float4);
    if (threadIdx.x % 128 > 0) return;
    const int first = chunk * kStreamColumns + 8 * first_group(), own = warpgroup() * kColumns;
    uint64_t* barrier = described + warpgroup();
    phase_barrier_expect(barrier, kScaleBytes + (layers.has_rgb(layer) ? kColorBytes : 0));
    copy_bulk<kScaleBytes>(scales + own, layers.scales + layers.scales_of(image(), layer) + first, barrier);
    if (layers.has_rgb(layer))
      copy_bulk<kColorBytes>(rgb_weight + own, layers.rgb_weight + (layer / 2 - layers.rgb_from) * kInrWidth + first,
                             barrier);
  }

  // The product of a layer, for a chunk of its columns. There are features without channels.
  __device__ __forceinline__ void accumulate(Sums& sums, int layer) {
    const int slabs = ceil_div(layer == 0 ? layers.channels : layers.width, kSlab);
    if constexpr (kAccurate)
      rows.template multiply_parts<kGroupHalves>(sums, first_group(), slabs, weights, copy());
    else
      rows.multiply(sums, slabs, weights, copy());
  }

  // What follows a product: activations for the next one, which kHold keeps in registers; skips; colours; and the
  // largest number of each row.
  template <bool kHold>
  __device__ __forceinline__ void finish(const Sums& sums, Held& held, int layer, int chunk) {
    const int block = layer / 2;
    const bool ends_block = layer % 2 == 1, last = layer + 1 == layers.products;
    const bool has_skip = ends_block && block >= layers.skip_from, colored = layers.has_rgb(layer);
    const bool is_skip = ends_block && !last && block + 1 >= layers.skip_from;
    // Through a shuffle the compiler knows the barrier to be the same in a whole warp. Otherwise it would take the wait
    // for one where threads part, and matrix instructions behind such a one do not overlap.
    const int own = __shfl_sync(~0u, warpgroup(), 0);
    // How many chunks there were before is even but for these: there are two a layer, and an even number of layers.
    phase_barrier_wait(described + own, layers.width > kStreamColumns ? chunk : layer % 2);
    // No branches but for whole warps' loads, so that all column groups are one stretch of code: what the end of a
    // block has more is computed in any case. And the scales of the next group are read before the activations of this
    // one are stored, since loads never move up across stores.
    const auto scales_of = [&](int n) {
      return *reinterpret_cast<const float4*>(scales + own * kColumns + 8 * n + column());
    };
    const float inside[2] = {ends_block ? 1.0f : factor[0], ends_block ? 1.0f : factor[1]};
    float4 next = scales_of(0);
    float colors[2][3] = {};
    constexpr int kAhead = 4;  // units of skips on their way at a time: they come from L2
#pragma unroll
    for (int first = 0; first < kUnits; first += kAhead) {
      uint4 units[kAhead] = {};
      if (has_skip) {
#pragma unroll
        for (int i = 0; i < kAhead; i++) units[i] = *skips(chunk, first + i);
      }
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        Words words = {units[i].x, units[i].y, units[i].z, units[i].w};
#pragma unroll
        for (int j = 0; j < kUnitGroups; j++) {
          const int n = kUnitGroups * (first + i) + j;
          const float4 scale = next;
          if (n + 1 < kColumnGroups) next = scales_of(n + 1);
          float4 a = {}, b = {};
          if (colored) {
            const float4* weight = rgb_weight + own * kColumns + 8 * n + column();
            a = weight[0], b = weight[1];
          }
#pragma unroll
          for (int r = 0; r < 2; r++) {
            float x = sums[4 * n + 2 * r] * scale.x * inside[r], y = sums[4 * n + 2 * r + 1] * scale.z * inside[r];
            x = fmaxf(x, layers.slope * x), y = fmaxf(y, layers.slope * y);
            if (has_skip) {
              const float2 before = kept(words, j, r);
              x = fmaf(factor[r], before.x, x), y = fmaf(factor[r], before.y, y);
            }
            keep(words, j, r, x, y);
            largest[r] = fmaxf(largest[r], fmaxf(fabsf(x), fabsf(y)));
            if (colored) {
              colors[r][0] = fmaf(x, a.x, fmaf(y, b.x, colors[r][0]));
              colors[r][1] = fmaf(x, a.y, fmaf(y, b.y, colors[r][1]));
              colors[r][2] = fmaf(x, a.z, fmaf(y, b.z, colors[r][2]));
            }
            uint32_t parts[kParts];
            pack(x * scale.y, y * scale.w, kHold ? held[n][r] : parts);
            if (!kHold) put(r, chunk * (kStreamColumns / 8) + first_group() + n, parts);
          }
        }
        if (is_skip) *skips(chunk, first + i) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
    if (!ends_block) largest[0] = largest[1] = 0.0f;
    if (!colored) return;
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int c = 0; c < 3; c++) {
        const float part = sum_of_row(colors[r][c]);
        if (lane() % 4 == 0) rgb[3 * row(r) + c] += part * inverse[row(r)];
      }
  }

  // Writes the activations of the first chunk.
  __device__ __forceinline__ void release(const Held& held) const {
#pragma unroll
    for (int n = 0; n < kColumnGroups; n++)
#pragma unroll
      for (int r = 0; r < 2; r++) put(r, first_group() + n, held[n][r]);
  }

  // Of the four lanes that share a row.
  __device__ __forceinline__ static float largest_of_row(float most) {
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    return fmaxf(most, __shfl_xor_sync(~0u, most, 2));
  }

  // The scale of a block's output, applied behind the next product. In the accurate mode all warps meet here: behind it
  // the block's colours are complete.
  __device__ __forceinline__ void rescale() {
#pragma unroll
    for (int r = 0; r < 2; r++) largest[r] = largest_of_row(largest[r]);
    if constexpr (kAccurate) {
#pragma unroll
      for (int r = 0; r < 2; r++)
        if (lane() % 4 == 0) exchange[row(r)] = largest[r];
      __syncthreads();
#pragma unroll
      for (int r = 0; r < 2; r++) largest[r] = fmaxf(largest[r], exchange[row(r) ^ kGroupRows]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      factor[r] = row_scale(largest[r]);
      largest[r] = 0.0f;
      if (lane() % 4 == 0) inverse[row(r)] *= inverse_scale(factor[r]);
    }
  }

  // The colours of a tile.
  __device__ __forceinline__ void store() const {
    if (lane() % 4 > 0 || (kAccurate && warpgroup() > 0)) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int64_t pixel = pixel_of(r);
      for (int c = 0; pixel >= 0 && c < 3; c++)
        layers.rgb[3 * pixel + c] = rgb[3 * row(r) + c] + (kAccurate ? rgb[3 * (kGroupRows + row(r)) + c] : 0.0f);
    }
  }
};

template <class Pass>
__global__ void __launch_bounds__(Pass::kThreads, 1) modulated_inr_warpgroups_kernel(const InrLayers layers) {
#if CIPS3D_HAS_WGMMA
  SharedArrays shared;
  Pass(shared, layers).run();
#else
  __trap();
#endif
}

}  // namespace cips3d

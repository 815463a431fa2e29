// y = x W of split_matmul.cu for compute capability 9.0: the same arithmetic, other instructions.
//
// A block has 128 rows and kPanels times 128 columns of y at a time, each of its two warpgroups 64 of the rows. Matrix
// instructions of four warps (wgmma) read W from shared memory, where one thread copies it in bulk, and x from
// registers, in which it is split. A warp copies its own 16 rows of x. So the warps share nothing but W, and while a
// warpgroup adds up what it has multiplied, or stores it, the other one multiplies.
//
// With 256 columns half as many blocks read and split a row of x as with 128, and L2 gives a quarter less: of a layer
// 512 to 512, 768 KB for 128 by 256 of y where two blocks of 128 by 128 take 1 MB.
#pragma once
#include "bulk_stages.h"
#include "tile_product.h"

namespace cips3d {

constexpr int kSplitRows = 128;                              // of y in a block
constexpr int kPanelColumns = 128, kPanelDepth = 32;         // of W in a bulk copy
constexpr int kPanelPart = kPanelDepth * kPanelColumns;      // halves of its high or of its low parts
constexpr int kPanelCore = 8 * 8;                            // halves of a core matrix
constexpr int kPanelGroup = kPanelColumns / 8 * kPanelCore;  // halves of eight of the depth

// W [depth, columns] as these kernels read it: [columns / 128, depth / 32, 2, 4, 16, kPanelCore], high parts and low
// parts as core matrices (warpgroup.h), zeros beyond the edges. The depth is numbered anew within a step, and columns
// are within 16, as in tile_product.h.

// Writes elements 4 i to 4 i + 3 of column n, as pack_row hands them over; chunks: depth / 32.
__device__ __forceinline__ void store_in_panel(half* panels, int n, int i, int chunks, uint4 unit) {
  const int step = i / 4, group = n % kPanelColumns / 16 * 2 + n % 4 / 2, row = n % 16 / 4 * 2 + n % 2;
  half* to = panels + (int64_t{n / kPanelColumns} * chunks + step / 2) * 2 * kPanelPart + step % 2 * 2 * kPanelGroup +
             group * kPanelCore + row * 8 + i % 4 * 2;
  *reinterpret_cast<uint32_t*>(to) = unit.x;
  *reinterpret_cast<uint32_t*>(to + kPanelGroup) = unit.y;
  *reinterpret_cast<uint32_t*>(to + kPanelPart) = unit.z;
  *reinterpret_cast<uint32_t*>(to + kPanelPart + kPanelGroup) = unit.w;
}

// Starts to multiply what x has been split into by what W has: part = products of kSteps depth steps, small ones first.
// Steps of W are `step_bytes` apart. Matrix instructions round sums toward zero, a bias that grows with every step; so
// they add up these few, and ordinary additions, which round to nearest, do the rest.
template <int kSteps>
__device__ __forceinline__ void start_split_products(float (&part)[64], uint32_t (&high)[kSteps][4],
                                                     uint32_t (&low)[kSteps][4], MatrixOperand of_high,
                                                     MatrixOperand of_low, int step_bytes) {
  wgmma_fence(part, high, low);
#pragma unroll
  for (int step = 0; step < kSteps; step++) {
    const MatrixOperand b = of_high.at(step * step_bytes);
    step == 0 ? wgmma_m64n128k16_f16<false>(part, low[step], b) : wgmma_m64n128k16_f16<true>(part, low[step], b);
    wgmma_m64n128k16_f16<true>(part, high[step], of_low.at(step * step_bytes));
  }
#pragma unroll
  for (int step = 0; step < kSteps; step++) wgmma_m64n128k16_f16<true>(part, high[step], of_high.at(step * step_bytes));
  wgmma_commit();
}

// Waits for them.
template <int kSteps>
__device__ __forceinline__ void add_split_products(float (&sums)[64], float (&part)[64], uint32_t (&high)[kSteps][4],
                                                   uint32_t (&low)[kSteps][4]) {
  wgmma_wait<0>(part, high, low);
#pragma unroll
  for (int i = 0; i < 64; i++) sums[i] += part[i];
}

template <int kPanels>
struct SplitProduct {
  static constexpr int kThreads = 256, kWarps = kThreads / 32, kStages = 4, kSteps = kPanelDepth / kDepthStep;
  static constexpr int kStageFloats = kSteps * 16 * kDepthStep;  // of a warp's rows of x
  static constexpr int kSlab = kPanels * 2 * kPanelPart;
  using Weights = BulkStages<kStages, kSlab, kWarps>;
  static constexpr size_t kBytes = shared_bytes<float>(kWarps * kStages * kStageFloats) + Weights::kBytes;

  const float* x;           // [rows, depth]
  const half* panels;       // W, see above
  const float* multiplier;  // [columns, padded] undoes the scales of W
  float* y;                 // [rows, columns]
  int rows, columns, depth;
  bool aligned, wide;  // rows of x in units of 16 bytes, of y in four numbers
  int chunks, column_tiles;
  float scale;  // of x

  float* stages;  // of the warp: [kStages, kSteps, 16 rows, kDepthStep]
  Weights weights;
  int tile, ahead_tile, ahead_chunk;  // what is computed, and which chunk of x is copied next

  __device__ __forceinline__ SplitProduct(SharedArrays& shared, const float* x, const half* panels,
                                          const float* multiplier, const float* largest, float* y, int rows,
                                          int columns, int depth, bool aligned, bool wide)
      : x(x),
        panels(panels),
        multiplier(multiplier),
        y(y),
        rows(rows),
        columns(columns),
        depth(depth),
        aligned(aligned),
        wide(wide),
        chunks(ceil_div(depth, kPanelDepth)),
        column_tiles(ceil_div(columns, kPanels * kPanelColumns)),
        scale(tensor_scale(largest)),
        stages(shared.take<float>(kWarps * kStages * kStageFloats) + threadIdx.x / 32 * kStages * kStageFloats),
        weights(shared),
        tile(blockIdx.x),
        ahead_tile(blockIdx.x),
        ahead_chunk(0) {}

  // Of slab i of all tiles: its panels, one after the other.
  __device__ __forceinline__ auto copy() const {
    return [this](int i, const auto& stage) {
      const int of_tile = blockIdx.x + i / chunks * gridDim.x, panel = of_tile % column_tiles * kPanels;
      const half* from = panels + (int64_t{panel} * chunks + i % chunks) * 2 * kPanelPart;
      stage.template fill<2 * kPanelPart * sizeof(half), kPanels>(from, int64_t{chunks} * 2 * kPanelPart);
    };
  }

  // Every gridDim.x-th tile; those of one row tile follow each other, so that L2 has its rows for all of them.
  __device__ __forceinline__ void run() {
    const int tiles = column_tiles * ceil_div(rows, kSplitRows);
    weights.init();
    __syncthreads();
    weights.begin(ceil_div<int>(tiles - tile, gridDim.x) * chunks, copy());
#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; stage++) fill(stage, tiles);
    int stage = 0;
#pragma unroll 1
    for (; tile < tiles; tile += gridDim.x) {
      float sums[kPanels][64];
#pragma unroll
      for (int i = 0; i < kPanels * 64; i++) sums[i / 64][i % 64] = 0.0f;
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; chunk++) {
        multiply(sums, stage, tiles);
        if (++stage == kStages) stage = 0;
      }
      if (wide)
        store<true>(sums);
      else
        store<false>(sums);
    }
    cp_async_wait<0>();
  }

 private:
  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }
  __device__ __forceinline__ int first_row(int of_tile) const {
    return of_tile / column_tiles * kSplitRows + threadIdx.x / 32 * 16;
  }

  // Starts to copy the next chunk of the warp's rows; zeros beyond the edges.
  __device__ __forceinline__ void fill(int stage, int tiles) {
    if (ahead_tile < tiles) {
      constexpr int kUnits = kPanelDepth / 4, kRowsAtOnce = 32 / kUnits;  // of 16 bytes in a row
      const int row = first_row(ahead_tile) + lane() / kUnits, unit = lane() % kUnits;
      const int k = ahead_chunk * kPanelDepth + 4 * unit;
      float* to = stages + stage * kStageFloats + (unit / 4 * 16 + lane() / kUnits) * kDepthStep + unit % 4 * 4;
      const float* from = x + int64_t{row} * depth + k;
      if (aligned) {
#pragma unroll
        for (int r = 0; r < 16; r += kRowsAtOnce, to += kRowsAtOnce * kDepthStep, from += kRowsAtOnce * int64_t{depth})
          cp_async_16(to, from, row + r < rows && k < depth ? 16 : 0);
      } else {
#pragma unroll 1
        for (int r = 0; r < 16; r += kRowsAtOnce, to += kRowsAtOnce * kDepthStep, from += kRowsAtOnce * int64_t{depth})
          for (int e = 0; e < 4; e++) to[e] = row + r < rows && k + e < depth ? from[e] : 0.0f;
      }
      if (++ahead_chunk == chunks) ahead_chunk = 0, ahead_tile += gridDim.x;
    }
    cp_async_commit();
  }

  // Adds a chunk of the depth.
  __device__ __forceinline__ void multiply(float (&sums)[kPanels][64], int stage, int tiles) {
    cp_async_wait<kStages - 2>();
    __syncwarp();  // the chunk is there, and all lanes have read the one before
    uint32_t high[kSteps][4], low[kSteps][4];
    const float* at = stages + stage * kStageFloats + lane() / 4 * kDepthStep + lane() % 4 * 4;
#pragma unroll
    for (int step = 0; step < kSteps; step++, at += 16 * kDepthStep)
      load_rows_as_operands<half, float, true>(high[step], low[step], at, at + 8 * kDepthStep, scale);
    fill(stage == 0 ? kStages - 1 : stage - 1, tiles);

    constexpr int kCoreBytes = kPanelCore * sizeof(half), kGroupBytes = kPanelGroup * sizeof(half);
    const half* slab = weights.wait();
#pragma unroll
    for (int panel = 0; panel < kPanels; panel++) {
      const MatrixOperand of_high = matrix_operand(slab + panel * 2 * kPanelPart, kGroupBytes, kCoreBytes);
      const MatrixOperand of_low = of_high.at(kPanelPart * sizeof(half));
      float part[64];
      start_split_products(part, high, low, of_high, of_low, 2 * kGroupBytes);
      add_split_products(sums[panel], part, high, low);
    }
    weights.leave(weights.next, copy());
    weights.next++;
  }

  template <bool kWide>
  __device__ __forceinline__ void store(const float (&sums)[kPanels][64]) const {
    const float undo = inverse_scale(scale);
    const int row = first_row(tile) + lane() / 4;
    const int first = tile % column_tiles * kPanels * kPanelColumns + lane() % 4 * 4;
    float* at = y + int64_t{row} * columns + first;
#pragma unroll
    for (int panel = 0; panel < kPanels; panel++) {
      float4 by[kPanelColumns / 16];  // all at once: loads never move up across stores
#pragma unroll
      for (int p = 0; p < kPanelColumns / 16; p++)
        by[p] = *reinterpret_cast<const float4*>(multiplier + first + panel * kPanelColumns + 16 * p);
#pragma unroll
      for (int p = 0; p < kPanelColumns / 16; p++) {
        const int column = panel * kPanelColumns + 16 * p, count = columns - first - column;
        const float factors[4] = {by[p].x, by[p].y, by[p].z, by[p].w};
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float* of_row = sums[panel] + 8 * p + 2 * r;  // of columns 4 t, 4 t + 1; the others four further on
          float values[4];
#pragma unroll
          for (int i = 0; i < 4; i++) values[i] = unscaled(of_row[i / 2 * 4 + i % 2], factors[i], undo);
          if (row + 8 * r < rows && count > 0)
            store_four(at + int64_t{8 * r} * columns + column, values, min(count, 4), kWide);
        }
      }
    }
  }
};

// grid: blocks that go through all tiles.
template <int kPanels>
__global__ void __launch_bounds__(SplitProduct<kPanels>::kThreads, 1)
    split_product_kernel(const float* __restrict__ x, const half* __restrict__ panels,
                         const float* __restrict__ multiplier, const float* __restrict__ largest, float* __restrict__ y,
                         int rows, int columns, int depth, bool aligned, bool wide) {
#if CIPS3D_HAS_WGMMA
  SharedArrays shared;
  SplitProduct<kPanels>(shared, x, panels, multiplier, largest, y, rows, columns, depth, aligned, wide).run();
#else
  __trap();
#endif
}

}  // namespace cips3d

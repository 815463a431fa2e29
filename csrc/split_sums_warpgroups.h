// G = x^T y of split_matmul.cu for compute capability 9.0: the same arithmetic as in weight_gradient.h, other
// instructions.
//
// A block has a tile of 128 by 256 of G, x's columns by y's, and a part of the rows; each of its two warpgroups 64 of
// x's columns. Both tensors stream through shared memory as they are. Of x every warp reads its 16 columns and splits
// them into operands in registers; y is split by all threads, a column each, and written to shared memory, from where
// matrix instructions of four warps (wgmma) read it by themselves. While one chunk of rows is multiplied, y of the
// next one is split. Parts are added up by the caller, in order.
#pragma once
#include "split_matmul_warpgroups.h"
#include "weight_gradient.h"

namespace cips3d {

struct SplitSums {
  static constexpr int kThreads = kGradientThreads, kOutputs = kGradientTile, kPanels = 2;
  static constexpr int kInputs = kPanels * kGradientTile, kStages = 3, kSteps = kSamples / kDepthStep;
  static constexpr int kCore = 8 * 8, kGroup = kInputs / 8 * kCore;  // halves of a core matrix; of eight rows of y
  static constexpr int kPart = kSamples / 8 * kGroup;                // of all high or all low parts
  static constexpr size_t kBytes =
      shared_bytes<float>(kStages * (1 + kPanels) * kStageElements<float>) + shared_bytes<half>(2 * 2 * kPart);
  static_assert(kThreads == kInputs, "a thread splits a column of y");

  const float* x;  // [rows, out]
  const float* y;  // [rows, in]
  float* partial;  // [parts, out, in]
  int rows, out, in;
  bool x_aligned, y_aligned, wide;  // rows of x, of y and of G in units of 16 bytes
  int first_output, first_input;
  float x_scale, y_scale;

  float* stages;   // [kStages, 1 + kPanels, kSamples, kRowStride]: x, and y in panels of 128 columns
  half* operands;  // [2 in turn, 2 parts, kSamples / 8, kInputs / 8, kCore] of y

  __device__ __forceinline__ SplitSums(SharedArrays& shared, const float* x, const float* y, const float* x_largest,
                                       const float* y_largest, float* partial, int rows, int out, int in,
                                       bool x_aligned, bool y_aligned, bool wide)
      : x(x),
        y(y),
        partial(partial),
        rows(rows),
        out(out),
        in(in),
        x_aligned(x_aligned),
        y_aligned(y_aligned),
        wide(wide),
        first_output(blockIdx.x / ceil_div(in, kInputs) * kOutputs),
        first_input(blockIdx.x % ceil_div(in, kInputs) * kInputs),
        x_scale(tensor_scale(x_largest)),
        y_scale(tensor_scale(y_largest)),
        stages(shared.take<float>(kStages * (1 + kPanels) * kStageElements<float>)),
        operands(shared.take<half>(2 * 2 * kPart)) {}

  // Every gridDim.y-th chunk of rows; there is one for every part.
  __device__ __forceinline__ void run() {
    const int chunks = ceil_div<int>(ceil_div(rows, kSamples) - blockIdx.y, gridDim.y);
#pragma unroll 1
    for (int i = 0; i < kStages - 1; i++) fill(i, chunks);
    uint32_t high[kSteps][4], low[kSteps][4];
    float sums[kPanels][64] = {};
    // Splits a part of a chunk's y, the first part once all have copied theirs of the chunk. What fills the stage of
    // the chunk before comes behind that barrier, since then all have split that one.
    const auto prepare = [&](int chunk, int part) {
      if (chunk == chunks) return;
      if (part == 0) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        fill(chunk + kStages - 1, chunks);
      }
      split_y(chunk, part);
      if (part == kPanels - 1) fence_for_async_reads();
    };
#pragma unroll
    for (int part = 0; part < kPanels; part++) prepare(0, part);
    split_x(high, low, 0);
    __syncthreads();
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
#pragma unroll
      for (int panel = 0; panel < kPanels; panel++) {
        float part[64];
        multiply(part, high, low, chunk, panel);
        prepare(chunk + 1, panel);
        add_split_products(sums[panel], part, high, low);
      }
      if (chunk + 1 < chunks) split_x(high, low, chunk + 1);
      __syncthreads();  // its operands are there
    }
    cp_async_wait<0>();
    store(sums);
  }

 private:
  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }
  // The first of x's columns that a warp has in the tile.
  __device__ __forceinline__ static int first_of_warp() { return threadIdx.x / 32 * 16; }

  __device__ __forceinline__ float* stage_of(int chunk) const {
    return stages + chunk % kStages * (1 + kPanels) * kStageElements<float>;
  }

  __device__ __forceinline__ void fill(int chunk, int chunks) const {
    if (chunk < chunks) {
      const int row = (blockIdx.y + chunk * gridDim.y) * kSamples, left = rows - row;
      float* stage = stage_of(chunk);
      fill_samples(stage, x + int64_t{row} * out, left, first_output, out, x_aligned);
#pragma unroll
      for (int panel = 0; panel < kPanels; panel++)
        fill_samples(stage + (1 + panel) * kStageElements<float>, y + int64_t{row} * in, left,
                     first_input + panel * kGradientTile, in, y_aligned);
    }
    cp_async_commit();
  }

  // Row g of an operand is column 2 g of the warp's 16, row g + 8 is 2 g + 1; its elements are rows of x as
  // ColumnFragment has them.
  __device__ __forceinline__ void split_x(uint32_t (&high)[kSteps][4], uint32_t (&low)[kSteps][4], int chunk) const {
    const float* at = stage_of(chunk) + lane() % 4 * kRowStride<float> + first_of_warp() + lane() / 4 * 2;
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      ColumnFragment<half, float, true, 2> columns;
      columns.load(at + step * kDepthStep * kRowStride<float>, x_scale);
#pragma unroll
      for (int i = 0; i < 4; i++) high[step][i] = columns.high[i % 2][i / 2], low[step][i] = columns.low[i % 2][i / 2];
    }
  }

  // The thread's column of y as rows of core matrices, whose elements are rows of y in the order of split_x. Columns
  // are numbered anew within 16, so that a lane has sums of columns 4 t to 4 t + 3 (see tile_product.h).
  __device__ __forceinline__ void split_y(int chunk, int part) const {
    constexpr int kGroups = kSamples / 8 / kPanels;
    const int row = threadIdx.x, column = row / 16 * 16 + row % 8 / 2 * 4 + row % 16 / 8 * 2 + row % 2;
    const float* from = stage_of(chunk) + (1 + column / kGradientTile) * kStageElements<float> +
                        part * kGroups * 8 * kRowStride<float> + column % kGradientTile;
    half* to = operands + chunk % 2 * 2 * kPart + part * kGroups * kGroup + row * 8;
#pragma unroll
    for (int group = 0; group < kGroups; group++, from += 8 * kRowStride<float>, to += kGroup) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        split<half, true>(from[i * kRowStride<float>], from[(i + 4) * kRowStride<float>], high[i], low[i], y_scale);
      *reinterpret_cast<uint4*>(to) = make_uint4(high[0], high[1], high[2], high[3]);
      *reinterpret_cast<uint4*>(to + kPart) = make_uint4(low[0], low[1], low[2], low[3]);
    }
  }

  // Starts a chunk's product with 128 columns of y.
  __device__ __forceinline__ void multiply(float (&part)[64], uint32_t (&high)[kSteps][4], uint32_t (&low)[kSteps][4],
                                           int chunk, int panel) const {
    constexpr int kCoreBytes = kCore * sizeof(half), kStepBytes = 2 * kGroup * sizeof(half);
    const half* of_panel = operands + chunk % 2 * 2 * kPart + panel * kGradientTile / 8 * kCore;
    const MatrixOperand of_high = matrix_operand(of_panel, kGroup * sizeof(half), kCoreBytes);
    const MatrixOperand of_low = of_high.at(kPart * sizeof(half));
    start_split_products(part, high, low, of_high, of_low, kStepBytes);
  }

  __device__ __forceinline__ void store(const float (&sums)[kPanels][64]) const {
    const float of_x = inverse_scale(x_scale), of_y = inverse_scale(y_scale);
    const int o = first_output + first_of_warp() + lane() / 4 * 2, column = first_input + lane() % 4 * 4;
    float* at = partial + (int64_t{blockIdx.y} * out + o) * in + column;
#pragma unroll
    for (int i = 0; i < kPanels * 16; i++) {
      const int r = i % 2, on = i / 2 * 16;
      const float* of_row =
          sums[i / 16] + i / 2 % 8 * 8 + 2 * r;  // of columns 4 t, 4 t + 1; the others four further on
      float values[4];
#pragma unroll
      for (int e = 0; e < 4; e++) values[e] = unscaled(of_row[e / 2 * 4 + e % 2], of_x, of_y);
      if (o + r < out && column + on < in) store_four(at + r * in + on, values, min(4, in - column - on), wide);
    }
  }
};

// grid: tiles of G (y's columns fastest), parts.
template <class Sums>
__global__ void __launch_bounds__(Sums::kThreads, 1)
    split_sums_kernel(const float* __restrict__ x, const float* __restrict__ y, const float* __restrict__ x_largest,
                      const float* __restrict__ y_largest, float* __restrict__ partial, int rows, int out, int in,
                      bool x_aligned, bool y_aligned, bool wide) {
#if CIPS3D_HAS_WGMMA
  SharedArrays shared;
  Sums(shared, x, y, x_largest, y_largest, partial, rows, out, in, x_aligned, y_aligned, wide).run();
#else
  __trap();
#endif
}

}  // namespace cips3d

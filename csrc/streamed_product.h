// Activations in shared memory times matrices that stream through it: for layers whose weights do not fit beside them.
//
// A block of 8 warps has the activations of kRows rows, and slabs of kSlab input channels of the matrices pass through
// two or three stages beside them, in the order of their use. They are the same for all blocks, so that a device's L2
// has to hold them once. Up to 256 columns of a product exist at a time: a warp has half of the rows and 64 of the
// columns in registers, 32 matrix instructions for 8 reads of operands. With 128 columns, it has a quarter of the rows.
#pragma once
#include "half_product.h"

namespace cips3d {

constexpr int kStrip = 64;           // of a layer's channels: what one warp has; widths are filled up to whole strips
constexpr int kStreamColumns = 256;  // most of a product
constexpr int kStreamWarps = 8, kStreamThreads = 32 * kStreamWarps;

__host__ __device__ constexpr int whole_strips(int channels) { return ceil_div(channels, kStrip) * kStrip; }

// What streams, over and over: all matrices of a pass.
struct Slabs {
  // [count] of [parts, columns, slab] in the order of use; parts: high, and low in the accurate mode. With core
  // matrices (warpgroup.h) [slab / 8, columns / 8, 8, 8].
  const half* halves;
  int count;               // of one pass
  int columns;             // of the products but for the tail, in whole strips, at most kStreamColumns
  int stages;              // 2 or 3, for kernels that do not have a fixed number
  int tail, tail_columns;  // the last `tail` slabs have so many columns instead

  __host__ __device__ int columns_of(int slab) const { return slab < count - tail ? columns : tail_columns; }
  // Of all slabs in front of one.
  __host__ __device__ int columns_before(int slab) const {
    const int in_tail = slab < count - tail ? 0 : slab - (count - tail);
    return (slab - in_tail) * columns + in_tail * tail_columns;
  }
};

// Rows of 16-bit numbers from shared memory, `from_row` apart, to device memory, `width` apart: the first `rows` of
// kRows, by all threads of a block, a row a warp and 16 bytes a lane. Several are read before one is written: behind a
// write each would be waited for.
template <int kRows, class T>
__device__ __forceinline__ void store_rows(const T* from, int from_row, T* to, int width, int rows) {
  static_assert(sizeof(T) == 2 && kStreamColumns == 32 * 8, "");
  constexpr int kAtOnce = 4;
  const int column = threadIdx.x % 32 * 8;
  if (column >= width) return;
  from += column, to += column;
#pragma unroll 1
  for (int begin = threadIdx.x / 32; begin < kRows; begin += kAtOnce * kStreamWarps) {
    uint4 units[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++)
      units[i] = *reinterpret_cast<const uint4*>(from + (begin + i * kStreamWarps) * from_row);
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int row = begin + i * kStreamWarps;
      if (row < rows) *reinterpret_cast<uint4*>(to + int64_t{width} * row) = units[i];
    }
  }
}

// The same for rows of float32 numbers that lie in shared memory as a high and a low part, `low` behind one another.
template <int kRows>
__device__ __forceinline__ void store_rows(const half* from, int low, int from_row, float* to, int width, int rows) {
  constexpr int kAtOnce = 4, kUnit = 4;
#pragma unroll 1
  for (int column = threadIdx.x % 32 * kUnit; column < width; column += 32 * kUnit) {
#pragma unroll 1
    for (int begin = threadIdx.x / 32; begin < kRows; begin += kAtOnce * kStreamWarps) {
      float4 units[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        const half* at = from + (begin + i * kStreamWarps) * from_row + column;
        const uint2 high = *reinterpret_cast<const uint2*>(at), rest = *reinterpret_cast<const uint2*>(at + low);
        const float2 a = Operand<half>::unpack(high.x), b = Operand<half>::unpack(high.y);
        const float2 of_a = Operand<half>::unpack(rest.x), of_b = Operand<half>::unpack(rest.y);
        units[i] = make_float4(a.x + of_a.x, a.y + of_a.y, b.x + of_b.x, b.y + of_b.y);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        const int row = begin + i * kStreamWarps;
        if (row < rows) *reinterpret_cast<float4*>(to + int64_t{width} * row + column) = units[i];
      }
    }
  }
}

struct NothingBeside {
  __device__ __forceinline__ void operator()(int, int) const {}
};

// kWidth: the most input channels. E: what the 16-bit operands are. kColumns: the most columns.
template <int kRows_, int kSlab_, int kWidth, bool kAccurate_, class E = half, int kColumns = kStreamColumns>
class StreamedProduct {
 public:
  static constexpr int kRows = kRows_, kSlab = kSlab_;
  static constexpr int kStrips = kColumns / kStrip, kGroups = kStreamWarps / kStrips;  // of columns, of rows
  static constexpr bool kAccurate = kAccurate_;
  static constexpr int kParts = kAccurate ? 2 : 1;     // high, low
  static constexpr int kTiles = kRows / kGroups / 16;  // of 16 rows, of a warp
  static constexpr int kRow = kWidth + kPadHalves, kSlabRow = kSlab;
  static constexpr int kStage = kParts * kColumns * kSlabRow;  // halves
  static_assert(kColumns % kStrip == 0 && kRows % (16 * kGroups) == 0, "");
  static_assert(kSlab % 16 == 0 && kStrip % kSlab == 0, "");

  // Of a warp: columns 16 n to 16 n + 15 of its strip, rows 16 m to 16 m + 15 of its own.
  using Sums = float[kStrip / 16][kTiles][2][4];

  static constexpr size_t bytes(int stages) {
    return shared_bytes<half>(kParts * kRows * kRow) + shared_bytes<half>(stages * kStage);
  }

  half* activations;  // [kParts, kRows, kRow]

  // Its arrays are taken one by one, so that those whose sizes are constants may come before the stages.
  __device__ __forceinline__ explicit StreamedProduct(SharedArrays& shared)
      : activations(shared.take<half>(kParts * kRows * kRow)), stages_(nullptr), slab_(0), left_(0), stage_(0) {}
  __device__ __forceinline__ void take_stages(SharedArrays& shared, const Slabs& from) {
    stages_ = shared.take<half>(from.stages * kStage);
  }

  // Where the calling thread's fragments of sums are: rows first_row() + 16 m + 8 r, columns first_column() + 8 n and
  // the one behind.
  __device__ __forceinline__ static int first_row() { return group() * 16 * kTiles + lane() / 4; }
  __device__ __forceinline__ static int first_column() { return strip() * kStrip + lane() % 4 * 2; }
  // Warps of one strip are neighbours: where a product has fewer, they are on as many schedulers as there can be.
  __device__ __forceinline__ static int strip() { return warp() / kGroups; }

  // Starts to copy the first slabs of `passes` passes. Whoever has something to copy beside a slab does it in
  // beside(slab, stage).
  template <class Beside>
  __device__ __forceinline__ void start(const Slabs& from, int passes, Beside beside) {
    slab_ = stage_ = 0;
    left_ = passes * from.count;
    for (int stage = 0; stage + 1 < from.stages; stage++) copy(from, stage, beside);
  }

  // Waits for the next slab and for all threads, and starts another one into the stage that has become free.
  template <class Beside>
  __device__ __forceinline__ int next(const Slabs& from, Beside beside) {
    if (from.stages > 2)
      cp_async_wait<1>();
    else
      cp_async_wait<0>();
    __syncthreads();
    copy(from, stage_ == 0 ? from.stages - 1 : stage_ - 1, beside);
    const int stage = stage_;
    stage_ = stage + 1 == from.stages ? 0 : stage + 1;
    return stage;
  }

  // Writes two neighbouring activations of a row.
  __device__ __forceinline__ void put(int row, int channel, float x, float y) {
    uint32_t high, low = 0;
    pack_activations<kAccurate>(x, y, high, low);
    put(row, channel, high, low);
  }
  __device__ __forceinline__ void put(int row, int channel, uint32_t high, uint32_t low) {
    *reinterpret_cast<uint32_t*>(activations + row * kRow + channel) = high;
    if (kAccurate) *reinterpret_cast<uint32_t*>(activations + (kRows + row) * kRow + channel) = low;
  }

  // Adds the products of the warp's rows and slab k of a matrix of so many columns, in `stage`, for its strip. Matrix
  // instructions round sums toward zero, a bias that grows with every step and every layer: in the accurate mode they
  // add up one step each, and ordinary additions, which round to nearest, do the rest.
  __device__ __forceinline__ void multiply(int columns, Sums& sums, int stage, int k) const {
    const half* weight = stages_ + stage * kStage + strip() * kStrip * kSlabRow;
    const half* row = activations + (group() * 16 * kTiles + lane() % 16) * kRow + kSlab * k + lane() / 16 * 8;
#pragma unroll
    for (int column = 0; column < kSlab; column += 16) {
      uint32_t high[kTiles][4], low[kTiles][4] = {};
#pragma unroll
      for (int m = 0; m < kTiles; m++) {
        ldmatrix_x4(high[m], row + 16 * m * kRow + column);
        if (kAccurate) ldmatrix_x4(low[m], row + (kRows + 16 * m) * kRow + column);
      }
#pragma unroll
      for (int n = 0; n < kStrip / 16; n++) {
        float step[kTiles][2][4] = {};
        multiply_step<kTiles, kAccurate, kSlabRow, E>(kAccurate ? step : sums[n], high, low, weight,
                                                      anew(columns) * kSlabRow, 16 * n, column, lane());
#pragma unroll
        for (int i = 0; i < 8 * kTiles && kAccurate; i++)
          sums[n][i / 8][i / 4 % 2][i % 4] += step[i / 8][i / 4 % 2][i % 4];
      }
    }
  }

 private:
  // Computed anew wherever they are needed: kept in registers, they would make the widest kernels spill.
  __device__ __forceinline__ static int lane() { return anew(static_cast<int>(threadIdx.x)) % 32; }
  __device__ __forceinline__ static int warp() { return anew(static_cast<int>(threadIdx.x)) / 32; }
  __device__ __forceinline__ static int group() { return warp() % kGroups; }

  template <class Beside>
  __device__ __forceinline__ void copy(const Slabs& from, int stage, Beside beside) {
    if (left_ > 0) {
      constexpr int kUnits = kSlab / 8;  // of 16 bytes a row
      const int rows = kParts * from.columns_of(slab_);
      const half* halves = from.halves + int64_t{from.columns_before(slab_)} * (kParts * kSlab);
#pragma unroll 1  // registers are few
      for (int i = threadIdx.x; i < rows * kUnits; i += kStreamThreads) {
        const int row = i / kUnits, place = place_of<kSlabRow>(row, i % kUnits);
        cp_async_16(stages_ + stage * kStage + row * kSlabRow + 8 * place, halves + i * 8);
      }
      beside(slab_, stage);
      slab_ = slab_ + 1 == from.count ? 0 : slab_ + 1;
      left_--;
    }
    cp_async_commit();  // of nothing, too: waiting counts groups
  }

  half* stages_;             // [stages, kParts * columns, kSlabRow]
  int slab_, left_, stage_;  // to be copied next, how many still are, and the stage of the one to be multiplied next
};

}  // namespace cips3d

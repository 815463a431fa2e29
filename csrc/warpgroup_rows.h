// Activations of a warpgroup's 64 rows in shared memory, times matrices that stream past them (bulk_stages.h), for
// compute capability 9.0.
//
// Neither operand has padding or swizzle. A core matrix is 128 bytes in a row, which lie in all banks; weights are
// packed so, and a thread's fragment of eight columns of activations is its lane's word of a core matrix. All columns
// of a row belong to four lanes of one warp, a quarter each: nothing of a row crosses warps.
#pragma once
#include "bulk_stages.h"
#include "streamed_product.h"

namespace cips3d {

// kSlab: input channels of a slab.
template <int kSlab>
struct WarpgroupRows {
  static constexpr int kThreads = 128, kRows = 64;
  static constexpr int kCore = 8 * 8;                       // halves of a core matrix
  static constexpr int kColumnGroups = kStreamColumns / 8;  // of eight columns
  static constexpr int kStageHalves = kSlab * kStreamColumns;

  half* activations;  // [channels / 8, kRows / 8, kCore]

  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }
  __device__ __forceinline__ static int warp() { return threadIdx.x / 32 % 4; }  // of the warpgroup
  // The thread's rows, 0 and 1, among those of the warpgroup.
  __device__ __forceinline__ static int row(int r) { return warp() * 16 + 8 * r + lane() / 4; }
  // The thread's columns of a column group: this one and the one behind.
  __device__ __forceinline__ static int column() { return lane() % 4 * 2; }

  // The thread's two activations of row r and column group n.
  __device__ __forceinline__ uint32_t* pair(int r, int n) const {
    return reinterpret_cast<uint32_t*>(activations + (n * (kRows / 8) + 2 * warp() + r) * kCore) + lane();
  }
  __device__ __forceinline__ void put(int r, int n, uint32_t activations) const { *pair(r, n) = activations; }

  // What the warpgroup's threads have written is there for its products; what they have read may be overwritten by
  // bulk copies. Both are of another proxy than the threads' own accesses, hence the fence.
  __device__ __forceinline__ static void publish() {
    fence_for_async_reads();
    warpgroup_sync();
  }

  // The product with `count` slabs [kSlab / 8, column groups, kCore], those of the stages that come next; sums[4 n] and
  // the three behind are of column group n (warpgroup.h): 128 sums a thread for all columns, 32 where slabs have 64.
  // E: what the operands are.
  template <class E = half, int kSums, class Stages, class Copy>
  __device__ __forceinline__ void multiply(float (&sums)[kSums], int count, Stages& slabs, const Copy& copy) const {
    constexpr int kRowBytes = kCore * sizeof(half);
    constexpr int kGroupStep = kRows / 8 * kRowBytes, kSlabStep = kSums / 4 * kRowBytes;
#pragma unroll
    for (int i = 0; i < kSums; i++) sums[i] = 0.0f;
#pragma unroll 1
    for (int k = 0; k < count; k++) {
      const half* slab = slabs.wait();
      wgmma_fence(sums);
#pragma unroll
      for (int step = 0; step < kSlab / 16; step++) {
        const MatrixOperand a = matrix_operand(activations + (kSlab * k + 16 * step) * kRows, kGroupStep, kRowBytes);
        const MatrixOperand b = matrix_operand(slab + 16 * step * 2 * kSums, kSlabStep, kRowBytes);
        if constexpr (!std::is_same<E, half>::value)
          wgmma_m64n256k16_bf16(sums, a, b);
        else if constexpr (kSums == kStreamColumns / 2)
          wgmma_m64n256k16_f16(sums, a, b);
        else
          wgmma_m64n64k16_f16<true, false>(sums, a, b);
      }
      wgmma_commit();
      if (k > 0) {
        wgmma_wait<1>(sums);
        slabs.leave(slabs.next - 1, copy);
      }
      slabs.next++;
    }
    wgmma_wait<0>(sums);
    if (count > 0) slabs.leave(slabs.next - 1, copy);
  }

  // The accurate product, of activations whose low parts lie kLow halves behind the high ones, with `count` slabs of
  // high parts [kSlab / 8, column groups, kCore], low parts behind them: for half of the columns, from column group
  // `first` on. Matrix instructions round sums toward zero, a bias that grows with every step; so they add up two
  // slabs, and ordinary additions, which round to nearest, do the rest.
  template <int kLow, class Stages, class Copy>
  __device__ __forceinline__ void multiply_parts(float (&sums)[kStreamColumns / 4], int first, int count, Stages& slabs,
                                                 const Copy& copy) const {
    static_assert(kSlab == 16, "a step");
#pragma unroll
    for (int i = 0; i < kStreamColumns / 4; i++) sums[i] = 0.0f;
#pragma unroll 1
    for (int k = 0; k < count; k += 2) {
      float part[kStreamColumns / 4];
      start_parts<kLow, false>(part, k, first, slabs);
      if (k + 1 < count) {
        start_parts<kLow, true>(part, k + 1, first, slabs);
        wgmma_wait<1>(part);
        slabs.leave(slabs.next - 2, copy);
      }
      wgmma_wait<0>(part);
      slabs.leave(slabs.next - 1, copy);
#pragma unroll
      for (int i = 0; i < kStreamColumns / 4; i++) sums[i] += part[i];
    }
  }

  // To and from device memory, the warp's rows move in units of 16 bytes, eight channels of a row. Eight lanes have a
  // core matrix, 128 bytes in a row; a warp has four side by side, 64 bytes of each of eight rows: whole sectors. Which
  // column group and which row unit i of a lane is of, i < kUnits:
  static constexpr int kUnits = 2 * kColumnGroups / 4;
  __device__ __forceinline__ static int unit_group(int i) { return i / 2 * 4 + lane() / 8; }
  __device__ __forceinline__ static int unit_row(int i) { return 16 * warp() + i % 2 * 8 + lane() % 8; }
  __device__ __forceinline__ uint4* unit(int i) const {
    half* core = activations + (unit_group(i) * (kRows / 8) + 2 * warp() + i % 2) * kCore;
    return reinterpret_cast<uint4*>(core) + lane() % 8;
  }

  // The warp's rows of `width` 16-bit channels to device memory, where the warpgroup's first row goes `to` and but
  // `rows` of them exist. Several are read before one is written: behind a write each would be waited for.
  template <class T>
  __device__ __forceinline__ void store(T* to, int width, int rows) const {
    static_assert(sizeof(T) == 2, "");
    constexpr int kAtOnce = 8;
#pragma unroll 1
    for (int begin = 0; begin < kUnits && 8 * unit_group(begin) < width; begin += kAtOnce) {
      uint4 units[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) units[i] = *unit(begin + i);
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        const int row = unit_row(begin + i), column = 8 * unit_group(begin + i);
        if (row < rows && column < width) *reinterpret_cast<uint4*>(to + int64_t{width} * row + column) = units[i];
      }
    }
  }
  // Starts to copy them from there; rows that do not exist become zeros.
  template <class T>
  __device__ __forceinline__ void fetch(const T* from, int width, int rows) const {
    static_assert(sizeof(T) == 2, "");
#pragma unroll 4
    for (int i = 0; i < kUnits; i++) {
      const int row = unit_row(i), column = 8 * unit_group(i);
      if (column < width)
        cp_async_16(unit(i), from + int64_t{width} * max(min(row, rows - 1), 0) + column, row < rows ? 16 : 0);
    }
    cp_async_commit();
  }

 private:
  // Starts the products with slab k, the next one: part begins with them or, with kAdds, goes on. Small ones first.
  template <int kLow, bool kAdds, class Stages>
  __device__ __forceinline__ void start_parts(float (&part)[kStreamColumns / 4], int k, int first,
                                              Stages& slabs) const {
    constexpr int kRowBytes = kCore * sizeof(half), kGroupStep = kRows / 8 * kRowBytes;
    const half* slab = slabs.wait() + first * kCore;
    slabs.next++;
    const MatrixOperand high = matrix_operand(activations + kSlab * k * kRows, kGroupStep, kRowBytes);
    const MatrixOperand b = matrix_operand(slab, kColumnGroups * kRowBytes, kRowBytes);
    wgmma_fence(part);
    wgmma_m64n128k16_f16<kAdds>(part, high.at(kLow * sizeof(half)), b);
    wgmma_m64n128k16_f16<true>(part, high, b.at(kStageHalves * sizeof(half)));
    wgmma_m64n128k16_f16<true>(part, high, b);
    wgmma_commit();
  }
};

// Of the four lanes that share a row.
__device__ __forceinline__ float sum_of_row(float part) {
  part += __shfl_xor_sync(~0u, part, 1);
  return part + __shfl_xor_sync(~0u, part, 2);
}

}  // namespace cips3d

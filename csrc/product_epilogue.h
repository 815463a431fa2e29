// What follows the products of tile_product.h: an epilogue is applied to a warp's sums, and rows of four neighbours are
// read and written.
#pragma once
#include "packed_matrix.h"

namespace cips3d {

constexpr int kWarpRows = 32, kWarpColumns = 64;
using WarpSums = float[kWarpRows / 16][kWarpColumns / 8][4];

// Four neighbours in a row of y, or as many as there are.
template <class Y>
__device__ __forceinline__ void store_four(Y* y, const float (&values)[4], int count, bool wide) {
  if (wide) {
    Vector<Y, 4> vector;
#pragma unroll
    for (int i = 0; i < 4; i++) vector.value[i] = from_float<Y>(values[i]);
    *reinterpret_cast<Vector<Y, 4>*>(y) = vector;
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < count) y[i] = from_float<Y>(values[i]);
  }
}
template <class Y>
__device__ __forceinline__ void load_four(float (&values)[4], const Y* y, int count, bool wide) {
  if (wide) {
    const Vector<Y, 4> vector = *reinterpret_cast<const Vector<Y, 4>*>(y);
#pragma unroll
    for (int i = 0; i < 4; i++) values[i] = to_float(vector.value[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) values[i] = i < count ? to_float(y[i]) : 0.0f;
  }
}

// Four neighbours each in rows 0, 8, ... of y, of which there are `rows`, one or more; those past the end are read in
// the last one. All are asked for before one is needed.
template <class Y, int kCount>
__device__ __forceinline__ void load_rows(float (&values)[kCount][4], const Y* y, int rows, int stride, int count,
                                          bool wide) {
  if (wide) {
    Vector<Y, 4> vectors[kCount];
#pragma unroll
    for (int k = 0; k < kCount; k++)
      vectors[k] = *reinterpret_cast<const Vector<Y, 4>*>(y + min(8 * k, rows - 1) * stride);
#pragma unroll
    for (int k = 0; k < kCount; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) values[k][i] = to_float(vectors[k].value[i]);
  } else {
#pragma unroll
    for (int k = 0; k < kCount; k++) load_four(values[k], y + min(8 * k, rows - 1) * stride, count, false);
  }
}

// Applies the epilogue to a warp's sums, four columns of a row at a time. An epilogue says whether it is
//   kGuarded   sums that are not finite are computed anew by its `repair`
//   kMeasured  x is scaled by what its `largest` magnitude needs
//   kApplied   it computes with the values (`apply`) and perhaps what it has read of the same place (`read`) before it
//              stores them: in the branches that store, and behind writes, everything would wait for itself
//   kRowsAtOnce of 1, 2 and 4, as many as registers allow
// `multiplier` and `offset` are at the lane's first column.
template <bool kWide, class Epilogue>
__device__ __forceinline__ void finish_columns(const WarpSums& sums, const Epilogue& epilogue, const float* multiplier,
                                               const float* offset, int64_t at, int rows, int columns, int stride) {
  [[maybe_unused]] float undo = 1.0f;
  if constexpr (Epilogue::kMeasured) undo = inverse_scale(tensor_scale(epilogue.largest));
#pragma unroll
  for (int p = 0; p < kWarpColumns / 16; p++) {
    if (16 * p >= columns) break;
    const int count = kWide ? 4 : min(4, columns - 16 * p);
    const float4 by = *reinterpret_cast<const float4*>(multiplier + 16 * p);
    float4 then = {};
    if constexpr (!Epilogue::kMeasured) then = *reinterpret_cast<const float4*>(offset + 16 * p);
    constexpr int kAtOnce = Epilogue::kRowsAtOnce;
#pragma unroll
    for (int first = 0; first < kWarpRows / 8; first += kAtOnce) {
      if (8 * first >= rows) break;
      const int64_t there = at + int64_t{8 * first} * stride + 16 * p;
      float values[kAtOnce][4], beside[kAtOnce][4] = {};
      if constexpr (Epilogue::kApplied) epilogue.read(beside, there, rows - 8 * first, stride, count, kWide);
#pragma unroll
      for (int k = 0; k < kAtOnce; k++) {
        const int h = first + k, c = h % 2 * 2;
        const float (&left)[4] = sums[h / 2][2 * p], (&right)[4] = sums[h / 2][2 * p + 1];
        const float of_sums[4] = {left[c], left[c + 1], right[c], right[c + 1]};
        const float factors[4] = {by.x, by.y, by.z, by.w}, others[4] = {then.x, then.y, then.z, then.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
          values[k][i] =
              Epilogue::kMeasured ? unscaled(of_sums[i], factors[i], undo) : fmaf(of_sums[i], factors[i], others[i]);
          if constexpr (Epilogue::kApplied) {
            values[k][i] = epilogue.apply(values[k][i], beside[k][i]);
            compute_here(values[k][i]);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; k++)
        if (8 * (first + k) < rows) epilogue.store(values[k], there + int64_t{8 * k} * stride, count, kWide);
    }
  }
}

template <class Epilogue>
__device__ __forceinline__ void finish(const WarpSums& sums, const Epilogue& epilogue, const float* multiplier,
                                       const float* offset, int64_t at, int rows, int columns, int stride, bool wide) {
  if (wide)  // decided once, not in front of every row
    finish_columns<true>(sums, epilogue, multiplier, offset, at, rows, columns, stride);
  else
    finish_columns<false>(sums, epilogue, multiplier, offset, at, rows, columns, stride);
}

}  // namespace cips3d

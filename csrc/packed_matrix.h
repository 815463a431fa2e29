// A small matrix as the operands of tensor cores: packed, scaled row by row and split beforehand (see tile_product.h).
#pragma once
#include "operand.h"

namespace cips3d {

constexpr int kDepthStep = 16;  // of one matrix instruction

// m [B or 1, columns, depth] as operands: [B or 1, depth / 16, padded columns / 8, lane], 16 bytes each: the high parts
// of the lane's four elements and then the low ones. Row n is scaled by a power of two that brings its largest element
// to [2^14, 2^15), so that what fp16 cannot hold is below 2^-39 of it.
struct PackedMatrix {
  const uint4* units;
  const float* multiplier;  // [B, padded columns]: undoes the scale, and more
  const float* offset;      // [B, padded columns] or null
  int64_t image_stride;     // of `units`; 0: one matrix for all images
  int columns, depth;
};

__host__ __device__ constexpr int padded_columns(int columns) {
  return columns <= 64 ? 64 : ceil_div(columns, 128) * 128;
}
__host__ __device__ constexpr int depth_steps(int depth) { return ceil_div(depth, kDepthStep); }
__host__ __device__ constexpr int64_t packed_units(int columns, int depth) {
  return int64_t{depth_steps(depth)} * (padded_columns(columns) / 8) * 32;
}

// One warp scales and splits a row of a matrix whose elements `read(k)` gives, and returns the scale. store(i, unit)
// gets elements 4 i to 4 i + 3, zeros beyond `depth`, for `steps` depth steps: their high parts and then the low ones.
template <class E, class Read, class Store>
__device__ float pack_row(int depth, int steps, const Read& read, const Store& store) {
  const int lane = threadIdx.x % 32;
  float largest = 0.0f;
  for (int k = lane; k < depth; k += 32) largest = fmaxf(largest, fabsf(read(k)));
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
  const float scale = operand_scale(largest);
  for (int i = lane; i < steps * 4; i += 32) {
    const int k = i * 4;
    float m[4];
    for (int j = 0; j < 4; j++) m[j] = k + j < depth ? scale * read(k + j) : 0.0f;
    uint4 unit;
    unit.x = Operand<E>::pack(m[0], m[1]), unit.y = Operand<E>::pack(m[2], m[3]);
    const float2 first = Operand<E>::unpack(unit.x), second = Operand<E>::unpack(unit.y);
    unit.z = Operand<E>::pack(m[0] - first.x, m[1] - first.y);
    unit.w = Operand<E>::pack(m[2] - second.x, m[3] - second.y);
    store(i, unit);
  }
  return scale;
}

// The same as row `row` of a PackedMatrix. Rows beyond the matrix are 0.
template <class E, class Read>
__device__ float pack_row(uint4* units, int row, int padded, int depth, const Read& read) {
  // Columns 4 t + e of 16 are column 2 t + e % 2 of the instructions' tile e / 2 (see tile_product.h).
  const int e = row % 4, n = row / 16 * 2 + e / 2, g = row % 16 / 4 * 2 + e % 2;
  return pack_row<E>(depth, depth_steps(depth), read, [=](int i, uint4 unit) {
    units[(int64_t{i / 4} * (padded / 8) + n) * 32 + g * 4 + i % 4] = unit;  // of lane t = i % 4
  });
}

}  // namespace cips3d

// Products of float32 matrices on tensor cores, as accurate as float32 and independent of their magnitudes: operands
// are split into high and low parts of fp16, after scaling by powers of two, and three products of these are added up.
//
//   y = x W        many rows x, W packed beforehand, since it meets them again and again
//   G = x^T y      a sum over many rows
//
// 512 to 512 channels, a block's 128 by 128 of y: 23 000 clocks of tensor cores through mma.sync, and 22 000 of L2,
// since x and W stream (512 KB). Where a multiprocessor does a float32 product in the time of less than three of fp16,
// as on devices made for graphics, it does not pay.
#include "weight_gradient.h"

namespace cips3d {
namespace {

constexpr int kPackThreads = 128;  // a column of W for each warp

// Packs W as the matrix [columns, depth] that is multiplied with rows of `depth` elements.
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(const float* __restrict__ weight,  // element (k, n) at k depth_stride + n column_stride
                uint4* __restrict__ units,         // [packed]
                float* __restrict__ multiplier,    // [padded columns]
                int columns, int depth, int64_t column_stride, int64_t depth_stride) {
  const int column = blockIdx.x * (kPackThreads / 32) + threadIdx.x / 32;
  const bool inside = column < columns;
  const float* at = weight + (inside ? column : 0) * column_stride;
  const float scale = pack_row<half>(units, column, padded_columns(columns), depth,
                                     [=](int k) { return inside ? at[k * depth_stride] : 0.0f; });
  if (threadIdx.x % 32 == 0) multiplier[column] = inside ? inverse_scale(scale) : 0.0f;
}

struct MeasuredEpilogue {
  static constexpr bool kGuarded = false, kMeasured = true, kApplied = false;
  static constexpr int kRowsAtOnce = 1;
  const float* largest;  // magnitude in x
  float* y;              // [rows, columns]

  __device__ __forceinline__ void store(const float (&values)[4], int64_t at, int count, bool wide) const {
    store_four(y + at, values, count, wide);
  }
};

// What `split_matmul_pack` leaves.
PackedMatrix packed_matrix(Pointer packed, int columns, int depth) {
  uint4* units = output<uint4>(packed);
  return {units, reinterpret_cast<float*>(units + packed_units(columns, depth)), nullptr, 0, columns, depth};
}

}  // namespace

int64_t split_matmul_packed_bytes(int columns, int depth) {
  return 16 * packed_units(columns, depth) + 4 * padded_columns(columns);
}

void split_matmul_pack(cudaStream_t stream, Pointer weight, Pointer packed, int columns, int depth,
                       int64_t column_stride, int64_t depth_stride) {
  const PackedMatrix matrix = packed_matrix(packed, columns, depth);
  launch(pack_kernel, dim3(padded_columns(columns) / (kPackThreads / 32)), kPackThreads, 0, stream,
         input<float>(weight), const_cast<uint4*>(matrix.units), const_cast<float*>(matrix.multiplier), columns, depth,
         column_stride, depth_stride);
}

void split_matmul(cudaStream_t stream, Pointer x, Pointer largest, Pointer packed, Pointer y, int64_t rows, int columns,
                  int depth) {
  const MeasuredEpilogue epilogue = {input<float>(largest), output<float>(y)};
  const bool wide = columns % 4 == 0 && aligned_to(epilogue.y, 4 * sizeof(float));
  launch_product<half>(stream, input<float>(x), packed_matrix(packed, columns, depth), epilogue, 1, rows, wide, false);
}

int64_t split_matmul_over_rows_parts(int64_t rows, int x_columns, int y_columns) {
  return weight_gradient_parts(1, rows, y_columns, x_columns);
}

void split_matmul_over_rows(cudaStream_t stream, Pointer x, Pointer y, Pointer x_largest, Pointer y_largest,
                            Pointer partial, int64_t rows, int x_columns, int y_columns, int64_t parts) {
  launch_weight_gradient<half, float, float>(stream, x, y, x_largest, y_largest, partial, 0, 1, rows, y_columns,
                                             x_columns, parts);
}

}  // namespace cips3d

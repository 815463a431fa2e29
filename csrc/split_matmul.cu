// Products of float32 matrices on tensor cores, as accurate as float32 and independent of their magnitudes: operands
// are split into high and low parts of fp16, after scaling by powers of two, and three products of these are added up.
//
//   y = x W        many rows x, W packed beforehand, since it meets them again and again
//   G = x^T y      a sum over many rows
//
// 512 to 512 channels, a block's 128 by 128 of y: 23 000 clocks of tensor cores through mma.sync, and 22 000 of L2,
// since x and W stream (512 KB); 9.0 has kernels of its own (split_matmul_warpgroups.h, split_sums_warpgroups.h). Where
// a multiprocessor does a float32 product in the time of less than three of fp16, as on devices made for graphics, it
// does not pay.
#include "split_matmul_warpgroups.h"
#include "split_sums_warpgroups.h"

namespace cips3d {
namespace {

constexpr int kPackThreads = 128;  // a column of W for each warp

// Packs W as the matrix [columns, depth] that is multiplied with rows of `depth` elements, or as its panels.
template <bool kAsPanels>
__global__ void __launch_bounds__(kPackThreads)
    split_matmul_pack_kernel(const float* __restrict__ weight,  // element (k, n) at k depth_stride + n column_stride
                             uint4* __restrict__ units,         // [packed]
                             float* __restrict__ multiplier,    // [padded columns]
                             int columns, int depth, int64_t column_stride, int64_t depth_stride) {
  const int column = blockIdx.x * (kPackThreads / 32) + threadIdx.x / 32;
  const bool inside = column < columns;
  const float* at = weight + (inside ? column : 0) * column_stride;
  const auto read = [=](int k) { return inside ? at[k * depth_stride] : 0.0f; };
  float scale;
  if constexpr (kAsPanels) {
    const int chunks = ceil_div(depth, kPanelDepth);
    scale = pack_row<half>(depth, chunks * (kPanelDepth / kDepthStep), read, [=](int i, uint4 unit) {
      store_in_panel(reinterpret_cast<half*>(units), column, i, chunks, unit);
    });
  } else {
    scale = pack_row<half>(units, column, padded_columns(columns), depth, read);
  }
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

// Of W, whose panels are of 32 of the depth.
int64_t units_of(int columns, int depth) { return packed_units(columns, ceil_div(depth, kPanelDepth) * kPanelDepth); }

// What `split_matmul_pack` leaves.
PackedMatrix packed_matrix(Pointer packed, int columns, int depth) {
  uint4* units = output<uint4>(packed);
  return {units, reinterpret_cast<float*>(units + units_of(columns, depth)), nullptr, 0, columns, depth};
}

// Narrower products would leave half of the instructions' columns empty.
bool multiplies_in_panels(int columns) {
  return columns > kPanelColumns / 2 && uses_warpgroups("split_matmul") &&
         SplitProduct<2>::kBytes <= device_limits().shared_block;
}

// Panels side by side in a block: two, unless that takes over an eighth longer. A round of tiles of two panels lasts as
// long as two rounds of tiles of one.
int panels_of(int64_t rows, int columns) {
  const int64_t panels = ceil_div(columns, kPanelColumns), row_tiles = ceil_div<int64_t>(rows, kSplitRows);
  const int64_t multiprocessors = device_limits().multiprocessors;
  const auto rounds = [=](int64_t side_by_side) {
    return ceil_div(row_tiles * (panels / side_by_side), multiprocessors);
  };
  return panels % 2 == 0 && 2 * rounds(2) <= rounds(1) + rounds(1) / 8 ? 2 : 1;
}

template <int kPanels>
void launch_split_product(cudaStream_t stream, const float* x, const PackedMatrix& packed, const float* largest,
                          float* y, int rows, bool wide) {
  const bool aligned = packed.depth % 4 == 0 && aligned_to(x, 16);
  const int64_t tiles = int64_t{ceil_div(rows, kSplitRows)} * ceil_div(packed.columns, kPanels * kPanelColumns);
  const int64_t blocks = std::min<int64_t>(tiles, device_limits().multiprocessors);
  launch(split_product_kernel<kPanels>, dim3(blocks_for(blocks, 1)), dim3(SplitProduct<kPanels>::kThreads),
         SplitProduct<kPanels>::kBytes, stream, x, reinterpret_cast<const half*>(packed.units), packed.multiplier,
         largest, y, rows, packed.columns, packed.depth, aligned, wide);
}

bool sums_with_warpgroups(int x_columns, int y_columns) {
  return x_columns > SplitSums::kOutputs / 2 && y_columns > SplitSums::kInputs / 2 && uses_warpgroups("split_matmul") &&
         SplitSums::kBytes <= device_limits().shared_block;
}

int64_t tiles_of_sums(int x_columns, int y_columns) {
  return int64_t{ceil_div(x_columns, SplitSums::kOutputs)} * ceil_div(y_columns, SplitSums::kInputs);
}

}  // namespace

int64_t split_matmul_packed_bytes(int columns, int depth) {
  return 16 * units_of(columns, depth) + 4 * padded_columns(columns);
}

bool split_matmul_warpgroups(int columns) { return multiplies_in_panels(columns); }

bool split_matmul_over_rows_warpgroups(int x_columns, int y_columns) {
  return sums_with_warpgroups(x_columns, y_columns);
}

void split_matmul_pack(cudaStream_t stream, Pointer weight, Pointer packed, int columns, int depth,
                       int64_t column_stride, int64_t depth_stride) {
  const PackedMatrix matrix = packed_matrix(packed, columns, depth);
  launch(multiplies_in_panels(columns) ? split_matmul_pack_kernel<true> : split_matmul_pack_kernel<false>,
         dim3(padded_columns(columns) / (kPackThreads / 32)), kPackThreads, 0, stream, input<float>(weight),
         const_cast<uint4*>(matrix.units), const_cast<float*>(matrix.multiplier), columns, depth, column_stride,
         depth_stride);
}

void split_matmul(cudaStream_t stream, Pointer x, Pointer largest, Pointer packed, Pointer y, int64_t rows, int columns,
                  int depth) {
  const MeasuredEpilogue epilogue = {input<float>(largest), output<float>(y)};
  const bool wide = columns % 4 == 0 && aligned_to(epilogue.y, 4 * sizeof(float));
  const PackedMatrix matrix = packed_matrix(packed, columns, depth);
  if (!multiplies_in_panels(columns)) {
    launch_product<half>(stream, input<float>(x), matrix, epilogue, 1, rows, wide, false);
    return;
  }
  const auto launch_panels = panels_of(rows, columns) == 2 ? launch_split_product<2> : launch_split_product<1>;
  launch_panels(stream, input<float>(x), matrix, epilogue.largest, epilogue.y, rows_of_image(rows), wide);
}

int64_t split_matmul_over_rows_parts(int64_t rows, int x_columns, int y_columns) {
  if (!sums_with_warpgroups(x_columns, y_columns)) return weight_gradient_parts(1, rows, y_columns, x_columns);
  return parts_for(tiles_of_sums(x_columns, y_columns), most_gradient_parts(rows), device_limits().multiprocessors);
}

void split_matmul_over_rows(cudaStream_t stream, Pointer x, Pointer y, Pointer x_largest, Pointer y_largest,
                            Pointer partial, int64_t rows, int x_columns, int y_columns, int64_t parts) {
  if (sums_with_warpgroups(x_columns, y_columns)) {
    const float *x_ = input<float>(x), *y_ = input<float>(y);
    const bool x_aligned = x_columns % 4 == 0 && aligned_to(x_, 16);
    const bool y_aligned = y_columns % 4 == 0 && aligned_to(y_, 16);
    const bool wide = y_columns % 4 == 0 && aligned_to(output<float>(partial), 16);
    launch(split_sums_kernel<SplitSums>, grid_of(tiles_of_sums(x_columns, y_columns), parts, 1),
           dim3(SplitSums::kThreads), SplitSums::kBytes, stream, x_, y_, input<float>(x_largest),
           input<float>(y_largest), output<float>(partial), rows_of_image(rows), x_columns, y_columns, x_aligned,
           y_aligned, wide);
    return;
  }
  launch_weight_gradient<half, float, float>(stream, x, y, x_largest, y_largest, partial, 0, 1, rows, y_columns,
                                             x_columns, parts);
}

}  // namespace cips3d

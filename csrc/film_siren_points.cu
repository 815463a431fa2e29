// A sine layer on points, or on other inputs of at most 8 channels: plain fp32 products in registers, forward and
// backward. Bound by the memory traffic of the outputs: the forward writes y once, the backward reads dy once, and both
// pass over nothing else of that size.
//
// A warp has 128 columns, four neighbouring ones a lane, and two or four rows at a time. The weights of its columns
// stay in registers, times gain / 2 pi, so that phases come out in revolutions.
#include "sine_layer.h"

namespace cips3d {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kColumns = 128;  // of a block
template <int kIn>
constexpr int kRows = 16 / kIn;  // of a warp at a time: as many as the registers have room for

// Four columns of the layer, as a lane has them.
template <int kIn>
struct Columns {
  float weight[4][kIn];  // gain W / 2 pi
  float offset[4];

  __device__ __forceinline__ Columns(const SineLayer& layer, int image, int column) {
    const float* w = layer.weight + image * layer.weight_stride();
    const float* bias = layer.bias + (layer.shared ? 0 : int64_t{image} * layer.out);
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const int o = column + c;
      const bool inside = o < layer.out;
      const int64_t at = int64_t{image} * layer.out + o;
      const float gain = inside && layer.gain ? layer.gain[at] : 1.0f;
#pragma unroll
      for (int k = 0; k < kIn; k++)
        weight[c][k] = inside && k < layer.in
                           ? gain * w[int64_t{o} * layer.in + k] * static_cast<float>(kRevolutionsARadian)
                           : 0.0f;
      offset[c] = inside ? phase_offset(bias + o, layer.gain, layer.shift, at) : 0.0f;
    }
  }

  __device__ __forceinline__ float phase(int column, const float (&x)[kIn]) const {
    float sum = offset[column];
#pragma unroll
    for (int k = 0; k < kIn; k++) sum = fmaf(weight[column][k], x[k], sum);
    return sum;
  }
};

template <int kIn>
__device__ __forceinline__ void load_point(float (&point)[kIn], const float* x, int in, bool inside) {
#pragma unroll
  for (int k = 0; k < kIn; k++) point[k] = inside && k < in ? x[k] : 0.0f;
}

// grid: tiles of columns, parts, images.
template <class Y, int kIn>
__global__ void __launch_bounds__(kThreads) film_siren_points_kernel(const float* __restrict__ x,  // [B, rows, in]
                                                                     SineLayer layer,
                                                                     Y* __restrict__ y,  // [B, rows, out]
                                                                     int64_t rows, bool wide) {
  const int column = blockIdx.x * kColumns + threadIdx.x % 32 * 4, image = blockIdx.z;
  const int count = min(4, layer.out - column);
  const Columns<kIn> columns(layer, image, column);
  if (count <= 0) return;
  constexpr int64_t kStep = kRows<kIn> * kWarps;  // of a block
  int64_t row = blockIdx.y * kStep + threadIdx.x / 32 * kRows<kIn>;
  for (; row < rows; row += gridDim.y * kStep) {
    float points[kRows<kIn>][kIn];
#pragma unroll
    for (int r = 0; r < kRows<kIn>; r++)
      load_point(points[r], x + (image * rows + row + r) * layer.in, layer.in, row + r < rows);
#pragma unroll
    for (int r = 0; r < kRows<kIn>; r++) {
      if (row + r >= rows) break;
      float values[4];
#pragma unroll
      for (int c = 0; c < 4; c++) values[c] = sine_of(columns.phase(c, points[r]));
      store_four(y + (image * rows + row + r) * layer.out + column, values, count, wide);
    }
  }
}

// Sums over the warp of N values a lane: afterwards values[0] of lane l is the sum of value l / (32 / N).
template <int N, int kLanes = 16>
__device__ __forceinline__ void add_lanes(float* values) {
  if constexpr (N > 1) {
    const bool upper = threadIdx.x & kLanes;  // which half of the values the lane goes on with
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      const float given = upper ? values[i] : values[i + N / 2], kept = upper ? values[i + N / 2] : values[i];
      values[i] = kept + __shfl_xor_sync(~0u, given, kLanes);
    }
    add_lanes<N / 2, kLanes / 2>(values);
  } else if constexpr (kLanes > 0) {
    values[0] += __shfl_xor_sync(~0u, values[0], kLanes);
    add_lanes<1, kLanes / 2>(values);
  }
}

// grid: tiles of columns, parts, images.
template <class Y, int kIn>
__global__ void __launch_bounds__(kThreads)
    film_siren_points_backward_kernel(const float* __restrict__ x,  // [B, rows, in]
                                      SineLayer layer,
                                      const Y* __restrict__ dy,         // [B, rows, out]
                                      float* __restrict__ dx,           // [column tiles, B, rows, in] or null
                                      float* __restrict__ partial,      // [parts, B, out, in] or null
                                      float* __restrict__ partial_sum,  // [parts, B, out] or null
                                      int64_t rows, bool wide) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, image = blockIdx.z;
  const int column = blockIdx.x * kColumns + lane * 4, count = min(4, layer.out - column);
  const Columns<kIn> columns(layer, image, column);
  SharedArrays shared;
  float* warp_sums = shared.take<float>(kWarps * 32 * 4 * (kIn + 1));

  float sums[4][kIn + 1] = {};                    // of slope x, and of the slope
  constexpr int64_t kStep = kRows<kIn> * kWarps;  // of a block
  int64_t row = blockIdx.y * kStep + warp * kRows<kIn>;
  for (; row < rows; row += gridDim.y * kStep) {
    float points[kRows<kIn>][kIn], slope[kRows<kIn>][4];
#pragma unroll
    for (int r = 0; r < kRows<kIn>; r++) {
      const bool inside = row + r < rows;
      load_point(points[r], x + (image * rows + row + r) * layer.in, layer.in, inside);
      load_four(slope[r], dy + (image * rows + row + r) * layer.out + column, inside ? count : 0,
                wide && inside && count > 0);
    }
#pragma unroll
    for (int r = 0; r < kRows<kIn>; r++) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
        slope[r][c] *= cosine_of(columns.phase(c, points[r]));
        sums[c][kIn] += slope[r][c];
#pragma unroll
        for (int k = 0; k < kIn; k++) sums[c][k] = fmaf(slope[r][c], points[r][k], sums[c][k]);
      }
    }
    if (dx == nullptr) continue;
    float products[kRows<kIn> * kIn] = {};
#pragma unroll
    for (int r = 0; r < kRows<kIn>; r++)
#pragma unroll
      for (int c = 0; c < 4; c++)
#pragma unroll
        for (int k = 0; k < kIn; k++)
          products[r * kIn + k] = fmaf(slope[r][c], columns.weight[c][k], products[r * kIn + k]);
    add_lanes<kRows<kIn> * kIn>(products);
    constexpr int kLanes = 32 / (kRows<kIn> * kIn);  // that have the same sum
    const int r = lane / kLanes / kIn, k = lane / kLanes % kIn;
    if (lane % kLanes == 0 && row + r < rows && k < layer.in)
      dx[((int64_t{blockIdx.x} * gridDim.z + image) * rows + row + r) * layer.in + k] = kTwoPi * products[0];
  }
  if (partial == nullptr) return;

#pragma unroll
  for (int c = 0; c < 4; c++)
#pragma unroll
    for (int k = 0; k <= kIn; k++) warp_sums[(warp * (kIn + 1) + k) * kColumns + lane * 4 + c] = sums[c][k];
  __syncthreads();
  for (int i = threadIdx.x; i < kColumns * (kIn + 1); i += kThreads) {
    const int o = blockIdx.x * kColumns + i % kColumns, k = i / kColumns;
    if (o >= layer.out || (k >= layer.in && k < kIn)) continue;
    float sum = 0.0f;
    for (int w = 0; w < kWarps; w++) sum += warp_sums[w * (kIn + 1) * kColumns + i];
    const int64_t at = (int64_t{blockIdx.y} * gridDim.z + image) * layer.out + o;
    if (k == kIn)
      partial_sum[at] = sum;
    else
      partial[at * layer.in + k] = sum;
  }
}

template <class F>
void for_inputs(int in, F f) {
  if (in <= 4)
    f(std::integral_constant<int, 4>{});
  else
    f(std::integral_constant<int, 8>{});
}

}  // namespace

int64_t film_siren_points_tiles(int out) { return ceil_div(out, kColumns); }

int64_t film_siren_points_parts(int64_t batch, int64_t rows, int out) {
  constexpr int64_t kBlocksAMultiprocessor = 4, kFewestRows = 128;  // of a part
  return parts_for(batch * film_siren_points_tiles(out), ceil_div(rows, kFewestRows),
                   kBlocksAMultiprocessor * device_limits().multiprocessors);
}

void film_siren_points(cudaStream_t stream, int dtype, Pointer x, Pointer weight, Pointer bias, Pointer gain,
                       Pointer shift, Pointer y, int64_t batch, int64_t rows, int in, int out, bool shared) {
  const SineLayer layer = {
      input<float>(weight), input<float>(bias), input<float>(gain), input<float>(shift), batch, in, out, shared};
  for_dtype(dtype, [&](auto element) {
    using Y = decltype(element);
    for_inputs(in, [&](auto inputs) {
      constexpr int kIn = decltype(inputs)::value;
      Y* y_ = output<Y>(y);
      const bool wide = out % 4 == 0 && aligned_to(y_, 4 * sizeof(Y));
      const dim3 grid = grid_of(film_siren_points_tiles(out), film_siren_points_parts(batch, rows, out), batch);
      launch(film_siren_points_kernel<Y, kIn>, grid, kThreads, 0, stream, input<float>(x), layer, y_, rows, wide);
    });
  });
}

void film_siren_points_backward(cudaStream_t stream, int dtype, Pointer x, Pointer dy, Pointer weight, Pointer bias,
                                Pointer gain, Pointer shift, Pointer dx, Pointer partial, Pointer partial_sum,
                                int64_t batch, int64_t rows, int in, int out, int64_t parts, bool shared) {
  const SineLayer layer = {
      input<float>(weight), input<float>(bias), input<float>(gain), input<float>(shift), batch, in, out, shared};
  for_dtype(dtype, [&](auto element) {
    using Y = decltype(element);
    for_inputs(in, [&](auto inputs) {
      constexpr int kIn = decltype(inputs)::value;
      const Y* dy_ = input<Y>(dy);
      const bool wide = out % 4 == 0 && aligned_to(dy_, 4 * sizeof(Y));
      const dim3 grid = grid_of(film_siren_points_tiles(out), parts, batch);
      launch(film_siren_points_backward_kernel<Y, kIn>, grid, kThreads,
             shared_bytes<float>(kWarps * 32 * 4 * (kIn + 1)), stream, input<float>(x), layer, dy_, output<float>(dx),
             output<float>(partial), output<float>(partial_sum), rows, wide);
    });
  });
}

}  // namespace cips3d

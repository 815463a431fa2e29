// For each image G = slope^T x and s = the sum of the slope over all rows: what the gradients of a layer's parameters
// are made of, as a sum over many rows of x and of the slope behind the layer.
//
// A block has a tile of 128 by 128 of G and a part of an image's rows, which are called samples here. Both tensors
// stream through shared memory as they are and become operands in registers: of 16 samples lane 4 g + t has t, t + 4,
// t + 8 and t + 12; of 16 outputs 2 g and 2 g + 1; of 32 inputs 4 g to 4 g + 3. Rows padded by 32 bytes make these
// accesses free of bank conflicts. Parts are added up by the caller, in order: the same result every time. Matrix
// instructions round toward zero, a bias that grows with every step, so the accurate sums leave the registers every
// kSumChunks stages.
#pragma once
#include "tile_product.h"

namespace cips3d {

constexpr int kGradientThreads = 256;
constexpr int kGradientTile = 128;  // of outputs and of inputs
constexpr int kSamples = 32;        // in a stage
constexpr int kSumChunks = 16;
constexpr int kWarpOutputs = 64, kWarpInputs = 32;

// Whether tensors of S and T are scaled by what their largest magnitudes need: float32 ones that become fp16. There s
// is left out.
template <class E, class S, class T>
constexpr bool kMeasuredGradient =
    std::is_same<E, half>::value && std::is_same<S, float>::value && std::is_same<T, float>::value;

template <class T>
constexpr int kRowStride = kGradientTile + 32 / int(sizeof(T));
template <class T>
constexpr int kStageElements = kSamples * kRowStride<T>;

// Where a lane's warp is in the tile, and the lane in its warp.
struct GradientPlace {
  int output, input, g, t;

  __device__ __forceinline__ GradientPlace() {
    const unsigned thread = thread_index(), warp = thread / 32;
    output = warp / 4 * kWarpOutputs, input = warp % 4 * kWarpInputs;
    g = thread % 32 / 4, t = thread % 4;
  }
};

// Operands of 16 samples and kColumns columns: pairs of samples (t, t + 4) and (t + 8, t + 12).
template <class E, class T, bool kLow, int kColumns>
struct ColumnFragment {
  uint32_t high[kColumns][2], low[kColumns][2];

  __device__ __forceinline__ void load(const T* at, float scale) {
#pragma unroll
    for (int pair = 0; pair < 2; pair++, at += 8 * kRowStride<T>) {
      const Vector<T, kColumns> a = *reinterpret_cast<const Vector<T, kColumns>*>(at);
      const Vector<T, kColumns> b = *reinterpret_cast<const Vector<T, kColumns>*>(at + 4 * kRowStride<T>);
#pragma unroll
      for (int c = 0; c < kColumns; c++) {
        if constexpr (std::is_same<T, float>::value) {
          split<E, kLow>(a.value[c], b.value[c], high[c][pair], low[c][pair], scale);
        } else {
          static_assert(!kLow, "16-bit tensors are one operand");
          const T both[2] = {a.value[c], b.value[c]};
          uint32_t as_they_are;
          memcpy(&as_they_are, both, sizeof both);
          high[c][pair] = converted<E, T>(as_they_are);
        }
      }
    }
  }
};

// Starts to fill a stage [samples, kRowStride] with columns `first` and on of a tensor [left, width]; zeros beyond.
template <class T>
__device__ __forceinline__ void fill_samples(T* stage, const T* from, int left, int first, int width, bool aligned) {
  constexpr int kUnit = 16 / sizeof(T), kUnits = kGradientTile / kUnit, kRowsAtOnce = kGradientThreads / kUnits;
  const unsigned thread = thread_index();
  const int r = thread / kUnits, unit = thread % kUnits * kUnit, column = first + unit;
  const int inside = (column < width ? min(left, kSamples) : 0) - r;
  T* to = stage + r * kRowStride<T> + unit;
  from += int64_t{r} * width + column;
  if (aligned) {
#pragma unroll 1
    for (int i = 0; i < kSamples; i += kRowsAtOnce, to += kRowsAtOnce * kRowStride<T>) {
      cp_async_16(to, from, i < inside ? 16 : 0);
      from += int64_t{kRowsAtOnce} * width;
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < kSamples; i += kRowsAtOnce, to += kRowsAtOnce * kRowStride<T>) {
      for (int e = 0; e < kUnit; e++) to[e] = i < inside && column + e < width ? from[e] : from_float<T>(0.0f);
      from += int64_t{kRowsAtOnce} * width;
    }
  }
}

template <class S>
__device__ __forceinline__ float sum_of_column(const S* column) {
  float sum = 0.0f;
#pragma unroll 8
  for (int r = 0; r < kSamples; r++) sum += to_float(column[r * kRowStride<S>]);
  return sum;
}

// grid: tiles of G (inputs fastest), parts, images.
template <class E, class S, class T>
__global__ void __launch_bounds__(kGradientThreads, 2)
    weight_gradient_kernel(const S* __restrict__ slope,              // [B, rows, out]
                           const T* __restrict__ x,                  // [B, rows, in]
                           const float* __restrict__ slope_largest,  // magnitude, where kMeasuredGradient
                           const float* __restrict__ x_largest,
                           float* __restrict__ partial,      // [parts, B, out, in]
                           float* __restrict__ partial_sum,  // [parts, B, out], not where kMeasuredGradient
                           int rows, int in, int out, int stages, bool slope_aligned, bool x_aligned) {
  constexpr bool kLow = std::is_same<S, float>::value && std::is_same<T, float>::value;
  constexpr bool kMeasured = kMeasuredGradient<E, S, T>;
  const int input_tiles = ceil_div(in, kGradientTile), image = blockIdx.z;
  const int first_input = blockIdx.x % input_tiles * kGradientTile;
  const int first_output = blockIdx.x / input_tiles * kGradientTile;
  SharedArrays shared;
  // Scales of the slope and of x; read anew whenever they are needed, since all registers are taken.
  volatile float* scales = shared.take<float>(2);
  if constexpr (kMeasured) {
    if (threadIdx.x < 2) scales[threadIdx.x] = tensor_scale(threadIdx.x == 0 ? slope_largest : x_largest);
  }
  S* slopes = shared.take<S>(stages * kStageElements<S>);
  T* inputs = shared.take<T>(stages * kStageElements<T>);

  const bool active = first_output + GradientPlace().output < out && first_input + GradientPlace().input < in;
  // A column of the slope for each of these threads.
  const bool adds = !kMeasured && first_input == 0 && threadIdx.x < kGradientTile;

  const int64_t part = int64_t{blockIdx.y} * gridDim.z + image;
  float sums[4][4][4] = {};  // [16 outputs, 8 inputs, fragment]
  float slope_sum = 0.0f;
  // Writes the sums, or adds them to those of this thread that are there.
  const auto store = [&](bool add) {
    const GradientPlace place;
    [[maybe_unused]] float of_slope = 1.0f, of_x = 1.0f;
    if constexpr (kMeasured) of_slope = inverse_scale(scales[0]), of_x = inverse_scale(scales[1]);
#pragma unroll
    for (int m = 0; m < kWarpOutputs / 16; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        // Row g + 8 h of 16 is output 2 g + h; columns 2 t and 2 t + 1 of tile n are inputs 8 t + n and 8 t + 4 + n
        // of 32.
        const int o = first_output + place.output + 16 * m + 2 * place.g + h;
        const int i = first_input + place.input + 8 * place.t;
        float* to = partial + (part * out + o) * in + i;
#pragma unroll
        for (int c = 0; c < 8; c++) {
          float& sum = sums[m][c % 4][2 * h + c / 4];
          if constexpr (kMeasured) sum = unscaled(sum, of_slope, of_x);
          if (o < out && i + c < in) to[c] = add ? to[c] + sum : sum;
          sum = 0.0f;
        }
      }
    }
  };
  int stage = 0;
  // Fills `stage` with samples, and moves on to the stage that was filled first.
  const auto fill = [&](int chunk) {
    const int row = chunk * kSamples;
    if (row < rows) {
      const int64_t at = int64_t{image} * rows + row;
      fill_samples(slopes + stage * kStageElements<S>, slope + at * out, rows - row, first_output, out, slope_aligned);
      fill_samples(inputs + stage * kStageElements<T>, x + at * in, rows - row, first_input, in, x_aligned);
    }
    cp_async_commit();
    if (++stage == stages) stage = 0;
  };
#pragma unroll 1
  for (int i = 0; i < stages - 1; i++) fill(blockIdx.y + i * gridDim.y);
  unsigned chunk = blockIdx.y;
#pragma unroll 1
  for (; chunk * kSamples < rows; chunk += gridDim.y) {
    if (stages == 3)
      cp_async_wait<1>();
    else
      cp_async_wait<0>();
    __syncthreads();  // the next stage is filled, and every warp is done with the one before it
    fill(chunk + gridDim.y * (stages - 1));
    if (adds) slope_sum += sum_of_column(slopes + stage * kStageElements<S> + threadIdx.x);
    if (!active) continue;
    const GradientPlace place;
    const S* at_slope = slopes + stage * kStageElements<S> + place.t * kRowStride<S> + place.output + 2 * place.g;
    const T* at_input = inputs + stage * kStageElements<T> + place.t * kRowStride<T> + place.input + 4 * place.g;
#pragma unroll 1
    for (int k = 0; k < kSamples; k += kDepthStep) {
      float slope_scale = Operand<E>::kRowScale, x_scale = Operand<E>::kRowScale;
      if constexpr (kMeasured) slope_scale = scales[0], x_scale = scales[1];
      ColumnFragment<E, T, kLow, 4> b;
      b.load(at_input + k * kRowStride<T>, x_scale);
#pragma unroll
      for (int m = 0; m < kWarpOutputs / 16; m++) {
        ColumnFragment<E, S, kLow, 2> a;
        a.load(at_slope + 16 * m + k * kRowStride<S>, slope_scale);
        const uint32_t high[4] = {a.high[0][0], a.high[1][0], a.high[0][1], a.high[1][1]};
        const uint32_t low[4] = {a.low[0][0], a.low[1][0], a.low[0][1], a.low[1][1]};
        for (int n = 0; n < 4 && kLow; n++) Operand<E>::mma(sums[m][n], low, b.high[n][0], b.high[n][1]);
        for (int n = 0; n < 4 && kLow; n++) Operand<E>::mma(sums[m][n], high, b.low[n][0], b.low[n][1]);
        for (int n = 0; n < 4; n++) Operand<E>::mma(sums[m][n], high, b.high[n][0], b.high[n][1]);
      }
    }
    if constexpr (kLow) {
      const unsigned done = chunk / gridDim.y;
      if (done % kSumChunks == kSumChunks - 1) store(done >= kSumChunks);
    }
  }
  cp_async_wait<0>();

  if (adds && first_output + threadIdx.x < out) partial_sum[part * out + first_output + threadIdx.x] = slope_sum;
  if (active) store(kLow && chunk >= kSumChunks * gridDim.y);
}

// A part has to be worth its share of the workspace.
inline int64_t most_gradient_parts(int64_t rows) {
  constexpr int64_t kFewestStages = 4;
  return ceil_div(rows, kFewestStages * kSamples);
}

inline int64_t weight_gradient_parts(int64_t batch, int64_t rows, int in, int out) {
  const int64_t tiles = int64_t{ceil_div(in, kGradientTile)} * ceil_div(out, kGradientTile);
  return parts_for(batch * tiles, most_gradient_parts(rows), 2 * device_limits().multiprocessors);
}

template <class E, class S, class T>
void launch_weight_gradient(cudaStream_t stream, Pointer slope, Pointer x, Pointer slope_largest, Pointer x_largest,
                            Pointer partial, Pointer partial_sum, int64_t batch, int64_t rows, int in, int out,
                            int64_t parts) {
  const DeviceLimits device = device_limits();
  const auto bytes = [](int stages) {
    return shared_bytes<float>(2) + shared_bytes<S>(stages * kStageElements<S>) +
           shared_bytes<T>(stages * kStageElements<T>);
  };
  const int stages = bytes(3) <= device.shared_block ? 3 : 2;
  const S* slope_ = input<S>(slope);
  const T* x_ = input<T>(x);
  const bool slope_aligned = out % kVectorWidth<S> == 0 && aligned_to(slope_, 16);
  const bool x_aligned = in % kVectorWidth<T> == 0 && aligned_to(x_, 16);
  const dim3 grid = grid_of(int64_t{ceil_div(in, kGradientTile)} * ceil_div(out, kGradientTile), parts, batch);
  launch(weight_gradient_kernel<E, S, T>, grid, kGradientThreads, bytes(stages), stream, slope_, x_,
         input<float>(slope_largest), input<float>(x_largest), output<float>(partial), output<float>(partial_sum),
         rows_of_image(rows), in, out, stages, slope_aligned, x_aligned);
}

}  // namespace cips3d

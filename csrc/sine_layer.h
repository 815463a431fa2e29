// What the forward and the backward of a sine layer have in common: how its matrix is prepared, and sines of phases.
//
// Phases are in revolutions: phase / 2 pi = (x m^T) multiplier + offset, with gain / 2 pi in the multiplier and the
// whole revolutions of the offset taken away beforehand. Only their fraction goes into the fast sine and cosine.
#pragma once
#include "tile_product.h"

namespace cips3d {

constexpr float kTwoPi = 6.28318530717958648f;
constexpr double kRevolutionsARadian = 0.159154943091895336;

__device__ __forceinline__ float sine_of(float revolutions) {
  return __sinf(kTwoPi * (revolutions - rintf(revolutions)));
}
__device__ __forceinline__ float cosine_of(float revolutions) {
  return __cosf(kTwoPi * (revolutions - rintf(revolutions)));
}

// The phase of x = 0 without its whole revolutions; null bias, gain or shift: 0, 1, 0.
__device__ __forceinline__ float phase_offset(const float* bias, const float* gain, const float* shift, int64_t at) {
  const double radians = double(gain ? gain[at] : 1.0f) * bias[0] + double(shift ? shift[at] : 0.0f);
  const double revolutions = radians * kRevolutionsARadian;
  return static_cast<float>(revolutions - rint(revolutions));
}

// A sine layer as the launchers get it; null gain and shift: 1 and 0.
struct SineLayer {
  const float* weight;  // [B or 1, out, in]
  const float* bias;    // [B or 1, out]
  const float* gain;    // [B, out] or null
  const float* shift;   // [B, out] or null
  int64_t batch;
  int in, out;
  bool shared;  // one weight and bias for all images

  __host__ __device__ int64_t matrices() const { return shared ? 1 : batch; }
  __host__ __device__ int64_t weight_stride() const { return shared ? 0 : int64_t{out} * in; }
};

// What a product with a sine layer needs beside its tensors: the packed matrix, multipliers and offsets.
struct LayerWorkspace {
  uint4* units;
  float *multiplier, *offset;

  LayerWorkspace(Pointer memory, int64_t matrices, int64_t batch, int columns, int depth)
      : units(output<uint4>(memory)),
        multiplier(reinterpret_cast<float*>(units + matrices * packed_units(columns, depth))),
        offset(multiplier + batch * padded_columns(columns)) {}
  static int64_t bytes(int64_t matrices, int64_t batch, int columns, int depth) {
    return 16 * matrices * packed_units(columns, depth) + 8 * batch * padded_columns(columns);
  }
};

// film_siren.cu: packs the weights of a layer for its phase, and computes multipliers and offsets. x is scaled by
// `row_scale`.
PackedMatrix prepare_phase(cudaStream_t stream, const SineLayer& layer, float row_scale, Pointer workspace);

// An epilogue of phases: `Derived` reads, applies and stores.
template <class Derived, class T>
struct PhaseEpilogue {
  static constexpr bool kGuarded = true, kMeasured = false, kApplied = true;
  const float* weight;  // [B or 1, out, in]
  int64_t weight_stride;

  // Everything a lane has of a tile once more in plain fp32, for elements of x beyond the range of fp16. Slow.
  __device__ __noinline__ void repair(const T* x, const PackedMatrix& matrix, int image, int row, int rows, int column,
                                      bool wide) const {
    const int64_t padded = padded_columns(matrix.columns);
    for (int p = 0; p < kWarpColumns / 16; p++, column += 16) {
      for (int h = 0; h < kWarpRows / 8 && column < matrix.columns; h++) {
        if (row + 8 * h >= rows) break;
        const int64_t r = int64_t{image} * rows + row + 8 * h;
        const int count = min(4, matrix.columns - column);
        float values[1][4] = {}, beside[1][4] = {};
        const Derived& epilogue = *static_cast<const Derived*>(this);
        epilogue.read(beside, r * matrix.columns + column, 1, 0, count, wide);
        for (int i = 0; i < count; i++) {
          const float* w = weight + image * weight_stride + int64_t{column + i} * matrix.depth;
          float sum = 0.0f, largest = 0.0f;
          for (int k = 0; k < matrix.depth; k++) {
            sum = fmaf(to_float(x[r * matrix.depth + k]), w[k], sum);
            largest = fmaxf(largest, fabsf(w[k]));
          }
          const int64_t at = image * padded + column + i;
          const float phase =
              fmaf(sum * (kRowScale<half, T> * operand_scale(largest)), matrix.multiplier[at], matrix.offset[at]);
          values[0][i] = epilogue.apply(phase, beside[0][i]);
        }
        epilogue.store(values[0], r * matrix.columns + column, count, wide);
      }
    }
  }
};

}  // namespace cips3d

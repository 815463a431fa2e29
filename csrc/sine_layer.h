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

// One warp packs row `row` of a matrix whose elements `read(k)` gives; returns the scale. Rows beyond the matrix are 0.
template <class E, class Read>
__device__ float pack_row(uint4* units, int row, int padded, int depth, const Read& read) {
  const int lane = threadIdx.x % 32;
  float largest = 0.0f;
  for (int k = lane; k < depth; k += 32) largest = fmaxf(largest, fabsf(read(k)));
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
  const float scale = operand_scale(largest);
  // Columns 4 t + e of 16 are column 2 t + e % 2 of the instructions' tile e / 2 (see tile_product.h).
  const int e = row % 4, n = row / 16 * 2 + e / 2, g = row % 16 / 4 * 2 + e % 2;
  for (int i = lane; i < depth_steps(depth) * 4; i += 32) {
    const int k = i * 4;  // of depth step i / 4, lane t = i % 4
    float m[4];
    for (int j = 0; j < 4; j++) m[j] = k + j < depth ? scale * read(k + j) : 0.0f;
    uint4 unit;
    unit.x = Operand<E>::pack(m[0], m[1]), unit.y = Operand<E>::pack(m[2], m[3]);
    const float2 first = Operand<E>::unpack(unit.x), second = Operand<E>::unpack(unit.y);
    unit.z = Operand<E>::pack(m[0] - first.x, m[1] - first.y);
    unit.w = Operand<E>::pack(m[2] - second.x, m[3] - second.y);
    units[(int64_t{i / 4} * (padded / 8) + n) * 32 + g * 4 + i % 4] = unit;
  }
  return scale;
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

// An epilogue of phases, with `Derived::store` of four of them.
template <class Derived, class T>
struct PhaseEpilogue {
  static constexpr bool kGuarded = true;
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
        float phases[4] = {};
        for (int i = 0; i < count; i++) {
          const float* w = weight + image * weight_stride + int64_t{column + i} * matrix.depth;
          float sum = 0.0f, largest = 0.0f;
          for (int k = 0; k < matrix.depth; k++) {
            sum = fmaf(to_float(x[r * matrix.depth + k]), w[k], sum);
            largest = fmaxf(largest, fabsf(w[k]));
          }
          const int64_t at = image * padded + column + i;
          phases[i] =
              fmaf(sum * (kRowScale<half, T> * operand_scale(largest)), matrix.multiplier[at], matrix.offset[at]);
        }
        static_cast<const Derived*>(this)->store(phases, r * matrix.columns + column, count, wide);
      }
    }
  }
};

}  // namespace cips3d

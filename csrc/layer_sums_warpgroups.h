// The sums of layer_sums.h for compute capability 9.0, with float16 operands, by matrix instructions of four warps
// (wgmma): they read both operands from shared memory by themselves, transposed, since the elements of these sums are
// samples. A block's two warpgroups have half of the rows each of what has a layer's inputs or outputs as rows; of the
// colours' weights, half of the columns.
#pragma once
#include "layer_sums.h"
#include "warpgroup.h"

namespace cips3d {

template <int kWidth, int kColor, class Buffers>
struct WarpgroupLayerSums {
  static_assert(kWidth == 128 && kColor == 64, "");

  float second[64];                             // [64, kWidth] rows of the second layer's weights
  float color[32];                              // [kColor, 64] columns of the colours' weights
  float second_bias[4], first[4];               // [64, 8] columns x, y, z, 1 and what their rounding left over
  float color_bias[4];                          // [64, 8] the same of 64 colours; of the last 48 and the density
  float density[4];                             // [64, 8] column 0: the density's weights
  static constexpr int kValues = 64 + 32 + 16;  // of a thread

  // Calls f(place, sum) for every sum of the thread.
  template <class F>
  __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int i = 0; i < 64; i++) f(i, second[i]);
#pragma unroll
    for (int i = 0; i < 32; i++) f(64 + i, color[i]);
#pragma unroll
    for (int i = 0; i < 4; i++)
      f(96 + i, second_bias[i]), f(100 + i, first[i]), f(104 + i, color_bias[i]), f(108 + i, density[i]);
  }

  // Adds a step's samples; all warps, between two barriers, of which the first follows fence_for_async_reads.
  __device__ __forceinline__ void add(const Buffers& buffers, int, int) {
    constexpr int kGroups = Buffers::kRows / 8, kCore = 64, kCoreBytes = kCore * sizeof(half);
    // Columns of a buffer, from a group of eight on.
    const auto columns = [](const half* buffer, int group) {
      return matrix_operand(buffer + group * kGroups * kCore, kCoreBytes, kGroups * kCoreBytes);
    };
    const int half_of_them = __shfl_sync(~0u, threadIdx.x / 128, 0);  // the warpgroup's, 0 or 1
    const MatrixOperand of_second = columns(buffers.second, 8 * half_of_them),
                        of_first = columns(buffers.first, 8 * half_of_them), h1 = columns(buffers.h1, 0),
                        h2 = columns(buffers.h2, 8 * half_of_them), of_color = columns(buffers.color, 0),
                        of_biases = columns(buffers.color, 2 * half_of_them),
                        of_density = columns(buffers.color, kColor / 8), point = columns(buffers.point, 0);
    wgmma_fence(second, color, second_bias, first, color_bias, density);
#pragma unroll
    for (int k = 0; k < Buffers::kRows / 16; k++) {
      const int on = 2 * k * kCoreBytes;
      wgmma_m64n128k16_f16_transposed(second, of_second.at(on), h1.at(on));
      wgmma_m64n64k16_f16_transposed(color, of_color.at(on), h2.at(on));
      wgmma_m64n8k16_f16_transposed(second_bias, of_second.at(on), point.at(on));
      wgmma_m64n8k16_f16_transposed(first, of_first.at(on), point.at(on));
      wgmma_m64n8k16_f16_transposed(color_bias, of_biases.at(on), point.at(on));
      wgmma_m64n8k16_f16_transposed(density, h2.at(on), of_density.at(on));
    }
    wgmma_commit();
    wgmma_wait<0>(second, color, second_bias, first, color_bias, density);
  }

  // Writes the sums, divided by the scales, in `GradientLayout`.
  __device__ __forceinline__ void store(float* to, const GradientLayout& layout, float unscale_colors, float unscale,
                                        int warp, int lane) {
    const int before = warp / 4 * 64, pair = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = warp % 4 * 16 + lane / 4 + i / 2 * 8, column = pair + i % 2;  // among 64, and of 8
      const int out = before + row;
#pragma unroll
      for (int n = 0; n < kWidth / 8; n++) {
        const int in = 8 * n + column;
        if (out < layout.width && in < layout.width) to[out * layout.width + in] = unscale * second[4 * n + i];
      }
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const int in = before + 8 * n + column;
        if (row < layout.color && in < layout.width)
          to[layout.color_weight() + row * layout.width + in] = unscale_colors * color[4 * n + i];
      }
      if (column == 0 && out < layout.width) to[layout.density_weight() + out] = unscale * density[i];
      // Beside a sum's columns x, y, z, 1 are those of low x, y, z: two lanes further on.
      const float low = __shfl_down_sync(~0u, first[i], 2);
      if (out < layout.width && column < 3) to[layout.first() + 3 * out + column] = unscale * (first[i] + low);
      if (column != 3) continue;
      if (out < layout.width) {
        to[layout.first_bias() + out] = unscale * first[i];
        to[layout.second_bias() + out] = unscale * second_bias[i];
      }
      if (before == 0 && row < layout.color) to[layout.color_bias() + row] = unscale_colors * color_bias[i];
      if (before > 0 && row == kColor - 16) to[layout.density_bias()] = unscale * color_bias[i];
    }
  }
};

}  // namespace cips3d

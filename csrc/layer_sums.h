// What the backward of render_rays adds up over samples: what a step leaves in shared memory, and the sums, spread over
// the registers of a block.
#pragma once
#include "siren_field.h"

namespace cips3d {

constexpr int kBackwardWarps = 8, kBackwardThreads = 32 * kBackwardWarps;  // of a block

// The gradients of one image's layers, as one array of floats, the second layer's weight [width, width] first.
struct GradientLayout {
  int width, color;
  __host__ __device__ constexpr int second_bias() const { return width * width; }                  // [width]
  __host__ __device__ constexpr int color_weight() const { return second_bias() + width; }         // [color, width]
  __host__ __device__ constexpr int color_bias() const { return color_weight() + color * width; }  // [color]
  __host__ __device__ constexpr int density_weight() const { return color_bias() + color; }        // [width]
  __host__ __device__ constexpr int density_bias() const { return density_weight() + width; }      // [1]
  __host__ __device__ constexpr int first() const { return density_bias() + 1; }                   // [width, 3]
  __host__ __device__ constexpr int first_bias() const { return first() + 3 * width; }             // [width]
  __host__ __device__ constexpr int size() const { return first_bias() + width; }
};

// Powers of two that bring gradients into float16's range: those of colours alone, and all of them together, which a
// sample's density and the layers in front of it meet. One for both would lose colours beside a much larger gradient of
// depth, or the other way round. NaN where a gradient is not finite: then every sum is NaN.
enum GradientScale { kScaleOfColors, kScaleOfAll };

// What the samples of a step leave in shared memory for the sums, as rows of halves; in the accurate mode twice, high
// and low parts. A tile is 16 rows; its warps share out the channels. With kCores the rows lie in the core matrices of
// warpgroup.h, [columns / 8, rows / 8], without padding.
template <int kWidth, int kColor, bool kAccurate, int kTiles_, bool kCores = false>
struct StepBuffers {
  static constexpr int kWidths = kWidth, kColors = kColor, kTiles = kTiles_, kRows = 16 * kTiles;
  static constexpr int kSharers = kBackwardWarps / kTiles;  // warps of a tile
  static constexpr int kParts = kAccurate ? 2 : 1;
  static constexpr int kExchanged = kSharers > 1 ? 48 : 0;  // numbers that a warp gives to the others of its tile
  static_assert(kTiles * kSharers == kBackwardWarps && kColor / 16 % kSharers == 0, "");
  static constexpr int kPad = kCores ? 0 : kPadHalves;
  static constexpr int kWide = kWidth + kPad, kNarrow = kColor + 16 + kPad, kPoint = 8 + kPad;
  static_assert(!kCores || !kAccurate, "");

  half* h1;          // [kParts, kRows, kWide] the second layer's input
  half* h2;          // [kParts, kRows, kWide] the colour layer's and the density's input
  half* second;      // [kParts, kRows, kWide] first the cosine of the second phase, then the gradient of that phase
  half* first;       // [kParts, kRows, kWide] gradient of the first phase
  half* color;       // [kParts, kRows, kNarrow] gradient of the colour phase; column kColor: of the raw density
  half* point;       // [kRows, kPoint] x, y, z, 1, and what the rounding of x, y, z left over
  float* exchanged;  // [kBackwardWarps, kExchanged]
  float* scales;     // [2] by GradientScale; not in registers, which are few

  static constexpr size_t kBytes = 4 * shared_bytes<half>(kParts * kRows * kWide) +
                                   shared_bytes<half>(kParts * kRows * kNarrow) + shared_bytes<half>(kRows * kPoint) +
                                   shared_bytes<float>(kBackwardWarps * kExchanged) + shared_bytes<float>(2);
  __device__ __forceinline__ explicit StepBuffers(SharedArrays& shared)
      : h1(shared.take<half>(kParts * kRows * kWide)),
        h2(shared.take<half>(kParts * kRows * kWide)),
        second(shared.take<half>(kParts * kRows * kWide)),
        first(shared.take<half>(kParts * kRows * kWide)),
        color(shared.take<half>(kParts * kRows * kNarrow)),
        point(shared.take<half>(kRows * kPoint)),
        exchanged(shared.take<float>(kBackwardWarps * kExchanged)),
        scales(shared.take<float>(2)) {}

  // Whoever calls it goes on when all warps of its tile have.
  __device__ __forceinline__ static void meet() {
    if constexpr (kSharers > 1)
      __syncthreads();  // of one tile alone would do
    else
      __syncwarp();
  }

  // Sums over the warps of a tile, in their order, of what each of them gives for a place: to all of them.
  template <int kCount>
  __device__ __forceinline__ void sum_over_sharers(float (&values)[kCount], int stride, int place, bool given) const {
    if constexpr (kSharers > 1) {
      const int warp = threadIdx.x / 32, first = warp / kSharers * kSharers;
#pragma unroll
      for (int i = 0; i < kCount; i++)
        if (given) exchanged[warp * kExchanged + stride * i + place] = values[i];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kCount; i++) {
        values[i] = 0.0f;
#pragma unroll
        for (int of = 0; of < kSharers; of++) values[i] += exchanged[(first + of) * kExchanged + stride * i + place];
      }
    }
  }

  // Where a number is in a buffer. Unsigned, since a division of signed numbers is more than a shift.
  template <int kRow>
  __device__ __forceinline__ static unsigned at(unsigned row, unsigned column) {
    return kCores ? (column / 8 * (kRows / 8) + row / 8) * 64 + row % 8 * 8 + column % 8 : row * kRow + column;
  }
  // Writes a pair of neighbouring columns of a row.
  template <int kRow>
  __device__ __forceinline__ static void put(half* buffer, int row, int column, uint32_t high, uint32_t low) {
    memcpy(buffer + at<kRow>(row, column), &high, sizeof(high));
    if (kAccurate) memcpy(buffer + at<kRow>(kRows + row, column), &low, sizeof(low));
  }
  // An operand A [16, 16] of rows `row` to row + 15, columns `column` to column + 15, that the tile's warps have
  // written.
  template <int kRow>
  __device__ __forceinline__ static void load_rows(uint32_t (&a)[4], const half* buffer, int row, int column,
                                                   int lane) {
    ldmatrix_x4(a, buffer + at<kRow>(row + lane % 16, column + lane / 16 * 8));
  }
  template <int kRow>
  __device__ __forceinline__ static float2 get(const half* buffer, int row, int column) {
    uint32_t pair;
    memcpy(&pair, buffer + at<kRow>(row, column), sizeof(pair));
    float2 value = Operand<half>::unpack(pair);
    if (kAccurate) {
      memcpy(&pair, buffer + at<kRow>(kRows + row, column), sizeof(pair));
      const float2 low = Operand<half>::unpack(pair);
      value.x += low.x;
      value.y += low.y;
    }
    return value;
  }
};

// Matrix instructions cut off what a sum cannot hold, so that long ones shrink: the sums move to memory every now and
// then, where additions round. `carried` has a thread's at [place, thread of the block].
template <class Sums>
__device__ __forceinline__ void clear_sums(Sums& sums, float* carried) {
  sums.each([&](int place, float& sum) { carried[place * kBackwardThreads + threadIdx.x] = sum = 0.0f; });
}
template <class Sums>
__device__ __forceinline__ void carry_sums(Sums& sums, float* carried) {
  sums.each([&](int place, float& sum) {
    // One thread an address, so the order is fixed; and an addition in memory takes no registers for what was there.
    atomicAdd(carried + place * kBackwardThreads + threadIdx.x, sum);
    sum = 0.0f;
  });
}
template <class Sums>
__device__ __forceinline__ void collect_sums(Sums& sums, const float* carried) {
  sums.each([&](int place, float& sum) { sum += carried[place * kBackwardThreads + threadIdx.x]; });
}

// The sums over samples, spread over the warps of a block so that every operand which a warp loads meets several
// others: of the second layer's matrix a warp has 32 rows and half of the columns, of the colour layer's 32 rows
// (colours) and 32 columns. Of what has one row or column (biases, the density's weights, the first layer) it has a
// strip of 16.
template <int kWidth, int kColor, class Buffers>
struct LayerSums {
  static constexpr int kSecond = kWidth / 32;  // strips of 16 columns
  static_assert(kWidth == 16 * kBackwardWarps && kColor == 64, "");

  float second[2][kSecond][2][4];
  float second_bias[4];
  float first[4];
  float color[2][2][2][4];
  float density[2][4];  // row 0 of 16
  float color_bias[4];

  static constexpr int kValues = 16 * kSecond + 52;  // of a thread

  // What a warp has of the matrices, as strips of 16 rows and columns, and which colours' biases: of the four strips of
  // colours, and then the density's.
  static __device__ __forceinline__ int second_row(int warp) { return warp / 2 * 2; }
  static __device__ __forceinline__ int second_column(int warp) { return warp % 2 * kSecond; }
  static __device__ __forceinline__ int color_row(int warp) { return warp % 2 * 2; }
  static __device__ __forceinline__ int color_column(int warp) { return warp / 2 * 2; }
  static __device__ __forceinline__ int bias_strip(int warp) { return warp < 4 ? color_row(warp) + warp / 2 : 4; }

  // Calls f(place, sum) for every sum of the thread.
  template <class F>
  __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int i = 0; i < 16 * kSecond; i++) f(i, second[i / (8 * kSecond)][i / 8 % kSecond][i / 4 % 2][i % 4]);
#pragma unroll
    for (int i = 0; i < 32; i++) f(16 * kSecond + i, color[i / 16][i / 8 % 2][i / 4 % 2][i % 4]);
#pragma unroll
    for (int i = 0; i < 8; i++) f(16 * kSecond + 32 + i, density[i / 4][i % 4]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      constexpr int kFirst = 16 * kSecond + 40;
      f(kFirst + i, second_bias[i]), f(kFirst + 4 + i, first[i]), f(kFirst + 8 + i, color_bias[i]);
    }
  }

  // An operand A [16, 16] that is the transpose of rows `row` to row + 15, columns `column` to column + 15 of a buffer.
  template <int kRow>
  __device__ __forceinline__ static void load_transposed(uint32_t (&a)[4], const half* buffer, int row, int column,
                                                         int lane) {
    ldmatrix_x4_trans(a, buffer + (row + lane % 8 + lane / 16 * 8) * kRow + column + lane / 8 % 2 * 8);
  }
  // Two operands B [16, 8] side by side: rows `row` to row + 15, columns `column` to column + 15 of a buffer.
  template <int kRow>
  __device__ __forceinline__ static void load_pair(uint32_t (&b)[4], const half* buffer, int row, int column,
                                                   int lane) {
    ldmatrix_x4_trans(b, buffer + (row + lane % 16) * kRow + column + lane / 16 * 8);
  }
  __device__ __forceinline__ static void multiply_pair(float (&accumulator)[2][4], const uint32_t (&a)[4],
                                                       const uint32_t (&b)[4]) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const uint32_t pair[2] = {b[2 * n], b[2 * n + 1]};
      mma_m16n8k16_f16(accumulator[n], a, pair, accumulator[n]);
    }
  }

  // Which of two operands, by a number that all lanes of a warp have.
  __device__ __forceinline__ static void choose(uint32_t (&to)[4], bool second, const uint32_t (&a)[4],
                                                const uint32_t (&b)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = second ? b[i] : a[i];
  }

  // Adds a step's samples; all warps, between two barriers.
  __device__ __forceinline__ void add(const Buffers& buffers, int warp, int lane) {
    constexpr int kParts = Buffers::kParts, kRows = Buffers::kRows, kWide = Buffers::kWide;
    constexpr int kNarrow = Buffers::kNarrow;
#pragma unroll 1
    for (int row = 0; row < kRows; row += 16) {
      uint32_t point[2];
      ldmatrix_x2_trans(point, buffers.point + (row + lane % 16) * Buffers::kPoint);
#pragma unroll
      for (int part = 0; part < kParts; part++) {  // of the gradient: high, low
        uint32_t a[2][4], of_density[4], chosen[4];
#pragma unroll
        for (int i = 0; i < 2; i++)
          load_transposed<kWide>(a[i], buffers.second + part * kRows * kWide, row, 16 * (second_row(warp) + i), lane);
        choose(chosen, warp % 2 != 0, a[0], a[1]);
        mma_m16n8k16_f16(second_bias, chosen, point, second_bias);
#pragma unroll
        for (int k = 0; k < kSecond; k++)
#pragma unroll
          for (int other = 0; other < kParts - part; other++) {  // low · low is below the rounding
            uint32_t b[4];
            load_pair<kWide>(b, buffers.h1 + other * kRows * kWide, row, 16 * (second_column(warp) + k), lane);
#pragma unroll
            for (int i = 0; i < 2; i++) multiply_pair(second[i][k], a[i], b);
          }
        load_transposed<kWide>(a[0], buffers.first + part * kRows * kWide, row, 16 * warp, lane);
        mma_m16n8k16_f16(first, a[0], point, first);
#pragma unroll
        for (int i = 0; i < 2; i++)
          load_transposed<kNarrow>(a[i], buffers.color + part * kRows * kNarrow, row, 16 * (color_row(warp) + i), lane);
        load_transposed<kNarrow>(of_density, buffers.color + part * kRows * kNarrow, row, kColor, lane);
        choose(chosen, warp / 2 != 0, a[0], a[1]);
        choose(chosen, warp >= 4, chosen, of_density);
        mma_m16n8k16_f16(color_bias, chosen, point, color_bias);
#pragma unroll
        for (int other = 0; other < kParts - part; other++) {
          uint32_t b[2][4];
#pragma unroll
          for (int k = 0; k < 2; k++) {
            load_pair<kWide>(b[k], buffers.h2 + other * kRows * kWide, row, 16 * (color_column(warp) + k), lane);
#pragma unroll
            for (int i = 0; i < 2; i++) multiply_pair(color[i][k], a[i], b[k]);
          }
          choose(chosen, warp % 2 != 0, b[0], b[1]);
          multiply_pair(density, of_density, chosen);
        }
      }
    }
  }

  // Writes the sums, divided by the scales, in `GradientLayout`.
  __device__ __forceinline__ void store(float* to, const GradientLayout& layout, float unscale_colors, float unscale,
                                        int warp, int lane) {
    const int row = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int of = row + i / 2 * 8, column = pair + i % 2;  // in a strip, and of 8
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 2 * kSecond; n++) {
          const int out = 16 * (second_row(warp) + m) + of, in = 16 * second_column(warp) + 8 * n + column;
          if (out < layout.width && in < layout.width)
            to[out * layout.width + in] = unscale * second[m][n / 2][n % 2][i];
        }
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const int out = 16 * (color_row(warp) + m) + of, in = 16 * color_column(warp) + 8 * n + column;
          if (out < layout.color && in < layout.width)
            to[layout.color_weight() + out * layout.width + in] = unscale_colors * color[m][n / 2][n % 2][i];
        }
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const int in = 16 * warp + 8 * n + column;
        if (of == 0 && in < layout.width) to[layout.density_weight() + in] = unscale * density[n][i];
      }
      // Beside a sum's columns x, y, z, 1 are those of low x, y, z: two lanes further on.
      const int out = 16 * warp + of, channel = 16 * bias_strip(warp) + of;
      const float low = __shfl_down_sync(~0u, first[i], 2);
      if (out < layout.width && column < 3) to[layout.first() + 3 * out + column] = unscale * (first[i] + low);
      if (out < layout.width && column == 3) {
        to[layout.first_bias() + out] = unscale * first[i];
        to[layout.second_bias() + out] = unscale * second_bias[i];
      }
      if (warp < 4 && channel < layout.color && column == 3)
        to[layout.color_bias() + channel] = unscale_colors * color_bias[i];
      if (warp == 4 && channel == kColor && column == 3) to[layout.density_bias()] = unscale * color_bias[i];
    }
  }
};

}  // namespace cips3d

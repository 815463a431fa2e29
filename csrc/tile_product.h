// y[b] = f(x[b] m[b]^T) for many rows x and a small matrix m, on tensor cores, f applied to the sums in registers.
//
// A block of 8 warps has 128 rows and 128 columns of y at a time, or 256 and 64; a warp 32 rows and 64 columns. Its
// part of m stays in shared memory where it fits, packed and split beforehand, and rows of x stream through two or
// three stages that are filled asynchronously. x is split into 16-bit operands in registers.
//
// The 16 elements of a step along the depth are numbered anew, the same way in x and m, so that lane 4 g + t of a warp
// has elements 4 t to 4 t + 3 of its rows: one access of 16 bytes. The columns are numbered so that it has columns
// 4 t to 4 t + 3 of 16 of the sums: four lanes store whole sectors of 32 bytes.
#pragma once
#include "ops.h"
#include "product_epilogue.h"

namespace cips3d {

constexpr int kProductThreads = 256;
constexpr int kStageRowBytes = 128;  // what one stage has of a row of x
template <class T>
constexpr int kChunkSteps = kStageRowBytes / int(sizeof(T)) / kDepthStep;  // depth steps of a stage

// How a product is cut into blocks, chosen by `plan_product`.
struct ProductPlan {
  int tile_rows, tile_columns;  // 128 by 128, four warps by two; or 256 by 64, eight by one
  int column_tiles, row_tiles, parts;
  int steps, chunks;  // depth steps, and how often a stage is filled for them
  int stages;         // 2 or 3
  bool resident;      // all depth steps of m in shared memory; else they stream like x
  bool aligned;       // rows of x in units of 16 bytes
  bool wide;          // four columns of y at a time
  size_t shared;
};

// The operands of rows g and g + 8 of 16 in one depth step; with kLow, low parts of float32 elements too.
template <class E, class T, bool kLow>
__device__ __forceinline__ void load_rows_as_operands(uint32_t (&high)[4], uint32_t (&low)[4], const T* upper,
                                                      const T* lower, float scale) {
  if constexpr (std::is_same<T, float>::value) {
    const float4 a = *reinterpret_cast<const float4*>(upper), b = *reinterpret_cast<const float4*>(lower);
    split<E, kLow>(a.x, a.y, high[0], low[0], scale);
    split<E, kLow>(b.x, b.y, high[1], low[1], scale);
    split<E, kLow>(a.z, a.w, high[2], low[2], scale);
    split<E, kLow>(b.z, b.w, high[3], low[3], scale);
  } else {
    const uint2 a = *reinterpret_cast<const uint2*>(upper), b = *reinterpret_cast<const uint2*>(lower);
    high[0] = converted<E, T>(a.x), high[1] = converted<E, T>(b.x);
    high[2] = converted<E, T>(a.y), high[3] = converted<E, T>(b.y);
  }
}

// Adds `steps` depth steps to a warp's sums. Rows and units are at the lane's place.
template <class E, class T, bool kLow>
__device__ __forceinline__ void add_products(WarpSums& sums, const T* rows,  // [steps, tile rows, 16]
                                             const uint4* units,             // [steps, tile columns / 8, 32]
                                             float scale,                    // of elements of x that are float32
                                             int steps, int tile_rows, int tile_columns) {
  constexpr bool kSplit = kLow && std::is_same<T, float>::value;
  // Columns in units of eight that are multiplied together: as many as registers allow, which depends on the target.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  constexpr int kGroup = 2;
#else
  constexpr int kGroup = kSplit ? 4 : 2;
#endif
  // Matrix instructions round sums toward zero, a bias that grows with every step. Where that matters they add up one
  // step each, and ordinary additions, which round to nearest, do the rest.
#pragma unroll 1
  for (int step = 0; step < steps; step++, rows += tile_rows * kDepthStep, units += tile_columns * 4) {
    uint32_t high[kWarpRows / 16][4], low[kWarpRows / 16][4];
#pragma unroll
    for (int m = 0; m < kWarpRows / 16; m++)
      load_rows_as_operands<E, T, kLow>(high[m], low[m], rows + 16 * m * kDepthStep, rows + (16 * m + 8) * kDepthStep,
                                        scale);
#pragma unroll
    for (int first = 0; first < kWarpColumns / 8; first += kGroup) {
      uint4 b[kGroup];
#pragma unroll
      for (int n = 0; n < kGroup; n++) b[n] = units[(first + n) * 32];
      // Independent sums one after the other; small products first.
#pragma unroll
      for (int m = 0; m < kWarpRows / 16; m++) {
        if constexpr (kSplit) {
          float sum[kGroup][4] = {};
#pragma unroll
          for (int n = 0; n < kGroup; n++) Operand<E>::mma(sum[n], low[m], b[n].x, b[n].y);
#pragma unroll
          for (int n = 0; n < kGroup; n++) Operand<E>::mma(sum[n], high[m], b[n].z, b[n].w);
#pragma unroll
          for (int n = 0; n < kGroup; n++) Operand<E>::mma(sum[n], high[m], b[n].x, b[n].y);
#pragma unroll
          for (int i = 0; i < 4 * kGroup; i++) sums[m][first + i / 4][i % 4] += sum[i / 4][i % 4];
        } else {
#pragma unroll
          for (int n = 0; n < kGroup && kLow; n++) Operand<E>::mma(sums[m][first + n], high[m], b[n].z, b[n].w);
#pragma unroll
          for (int n = 0; n < kGroup; n++) Operand<E>::mma(sums[m][first + n], high[m], b[n].x, b[n].y);
        }
      }
    }
  }
}

// threadIdx.x, read anew every time: what follows from it is not kept in registers, which the sums need.
__device__ __forceinline__ unsigned thread_index() {
#if defined(__CUDACC__)
  unsigned index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
#else
  return threadIdx.x;
#endif
}

// Where a lane's warp is in the tile, and the lane in its warp.
struct LanePlace {
  int row, column, g, t;

  __device__ __forceinline__ explicit LanePlace(int tile_rows) {
    const unsigned thread = thread_index();
    const int first = thread / 32 * kWarpRows;
    row = first & (tile_rows - 1), column = first < tile_rows ? 0 : kWarpColumns;
    g = thread % 32 / 4, t = thread % 4;
  }
};

// Starts to fill a stage [steps, tile rows, 16] with columns of x from `first` on; zeros beyond its edges.
template <class T>
__device__ __forceinline__ void fill_rows(T* stage, const T* x,  // [left, depth]: the tile's first row and on
                                          int left, int first, int steps, int depth, const ProductPlan& plan) {
  constexpr int kUnit = 16 / sizeof(T), kUnits = kDepthStep / kUnit, kRowsAtOnce = kProductThreads / kUnits;
  const unsigned thread = thread_index();
  const int r = thread / kUnits, k = first + thread % kUnits * kUnit, step_elements = plan.tile_rows * kDepthStep;
  const int rows = min(left, plan.tile_rows) - r;
  T* to = stage + thread * kUnit;
  const T* from = x + int64_t{r} * depth + k;
  if (plan.aligned) {
#pragma unroll 1
    for (int base = 0; base < plan.tile_rows; base += 128) {
#pragma unroll
      for (int i = base; i < base + 128; i += kRowsAtOnce) {
#pragma unroll
        for (int step = 0; step < kChunkSteps<T>; step++) {
          const bool inside = i < rows && k + step * kDepthStep < depth;
          if (step < steps) cp_async_16(to + step * step_elements, from + step * kDepthStep, inside ? 16 : 0);
        }
        to += kRowsAtOnce * kDepthStep, from += int64_t{kRowsAtOnce} * depth;
      }
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < plan.tile_rows; i += kRowsAtOnce) {
#pragma unroll 1
      for (int j = 0; j < steps * kDepthStep; j += kDepthStep)
        for (int e = 0; e < kUnit; e++)
          to[j * plan.tile_rows + e] = i < rows && k + j + e < depth ? from[j + e] : from_float<T>(0.0f);
      to += kRowsAtOnce * kDepthStep, from += int64_t{kRowsAtOnce} * depth;
    }
  }
}

// Starts to fill [steps, tile columns / 8, 32] with the packed matrix.
__device__ __forceinline__ void fill_matrix(uint4* to, const uint4* units, int steps, int padded, int tile_columns) {
  const unsigned thread = thread_index();
  to += thread, units += thread;
#pragma unroll 1
  for (; steps > 0; steps--, units += int64_t{padded} * 4) {
#pragma unroll 1
    for (int i = 0; i < tile_columns * 4; i += kProductThreads, to += kProductThreads) cp_async_16(to, units + i);
  }
}

__device__ __forceinline__ bool all_finite(const WarpSums& sums) {
  float zero = 0.0f;
#pragma unroll
  for (int i = 0; i < 64; i++) zero = fmaf(sums[i / 32][i / 4 % 8][i % 4], 0.0f, zero);
  return zero == 0.0f;  // not NaN, which infinity times 0 is
}

// grid: column tiles, parts, images. A block goes through row tiles part, part + parts, ... of its image.
template <class E, class T, class Epilogue>
__global__ void __launch_bounds__(kProductThreads, 2)
    product_kernel(const T* __restrict__ x,  // [B, rows, depth]
                   const __grid_constant__ PackedMatrix matrix, const __grid_constant__ Epilogue epilogue,
                   const __grid_constant__ ProductPlan plan, int rows, bool fast) {
  constexpr int kSteps = kChunkSteps<T>, kChunk = kSteps * kDepthStep;
  const int tile_rows = plan.tile_rows, tile_columns = plan.tile_columns;
  const int column_tile = blockIdx.x, part = blockIdx.y, image = blockIdx.z;
  const int padded = plan.column_tiles * tile_columns;

  SharedArrays shared;
  T* stages = shared.take<T>(size_t(plan.stages) * tile_rows * kChunk);
  uint4* units = shared.take<uint4>(size_t(plan.resident ? plan.steps : plan.stages * kSteps) * tile_columns * 4);
  float* multiplier = shared.take<float>(tile_columns);
  float* offset = shared.take<float>(tile_columns);
  if (threadIdx.x < tile_columns) {
    const int64_t at = int64_t{image} * padded + column_tile * tile_columns + threadIdx.x;
    multiplier[threadIdx.x] = matrix.multiplier[at];
    offset[threadIdx.x] = matrix.offset ? matrix.offset[at] : 0.0f;
  }

  const auto packed = [&](int step) {  // of this block's columns
    return matrix.units + image * matrix.image_stride + (int64_t{step} * padded + column_tile * tile_columns) * 4;
  };
  if (plan.resident) fill_matrix(units, packed(0), plan.steps, padded, tile_columns);

  const bool active = column_tile * tile_columns + LanePlace(tile_rows).column < matrix.columns;

  int stage = 0;
  // Fills `stage` with chunk `chunk` from a tile on, and moves on to the stage that was filled first.
  const auto fill = [&](int tile, int chunk) {
    for (; chunk >= plan.chunks; chunk -= plan.chunks) tile += plan.parts;
    if (tile < plan.row_tiles) {
      const int row = tile * tile_rows, first = chunk * kSteps, steps = min(kSteps, plan.steps - first);
      fill_rows(stages + stage * tile_rows * kChunk, x + (int64_t{image} * rows + row) * matrix.depth, rows - row,
                first * kDepthStep, steps, matrix.depth, plan);
      if (!plan.resident)
        fill_matrix(units + stage * kSteps * tile_columns * 4, packed(first), steps, padded, tile_columns);
    }
    cp_async_commit();
    if (++stage == plan.stages) stage = 0;
  };
#pragma unroll 1
  for (int i = 0; i < plan.stages - 1; i++) fill(part, i);
#pragma unroll 1
  for (int tile = part; tile < plan.row_tiles; tile += plan.parts) {
    WarpSums sums = {};
#pragma unroll 1
    for (int chunk = 0; chunk < plan.chunks; chunk++) {
      if (plan.stages == 3)
        cp_async_wait<1>();
      else
        cp_async_wait<0>();
      __syncthreads();  // the next stage is filled, and every warp is done with the one before it
      fill(tile, chunk + plan.stages - 1);
      if (!active) continue;
      const LanePlace place(tile_rows);
      const T* at_rows = stages + stage * tile_rows * kChunk + (place.row + place.g) * kDepthStep + 4 * place.t;
      const int first_step = plan.resident ? chunk * kSteps : stage * kSteps;
      const uint4* at_units = units + (first_step * tile_columns + place.column) * 4 + 4 * place.g + place.t;
      const int count = min(kSteps, plan.steps - chunk * kSteps);
      float scale = Operand<E>::kRowScale;
      if constexpr (Epilogue::kMeasured) scale = tensor_scale(epilogue.largest);
      if (fast)
        add_products<E, T, false>(sums, at_rows, at_units, scale, count, tile_rows, tile_columns);
      else
        add_products<E, T, true>(sums, at_rows, at_units, scale, count, tile_rows, tile_columns);
    }
    if (!active) continue;
    const LanePlace place(tile_rows);
    const int row = tile * tile_rows + place.row + place.g;
    const int in_tile = place.column + 4 * place.t, column = column_tile * tile_columns + in_tile;
    bool finite = true;
    if constexpr (Epilogue::kGuarded) finite = all_finite(sums);
    finish(sums, epilogue, multiplier + in_tile, offset + in_tile,
           (int64_t{image} * rows + row) * matrix.columns + column, rows - row, matrix.columns - column, matrix.columns,
           plan.wide);
    if constexpr (Epilogue::kGuarded) {
      if (!finite) epilogue.repair(x, matrix, image, row, rows, column, plan.wide);
    }
  }
  cp_async_wait<0>();
}

// Blocks of `shared` bytes that run at a time on a multiprocessor, at most two.
inline int blocks_resident(const DeviceLimits& device, size_t shared) {
  return 2 * (shared + kSharedOverhead) <= device.shared_multiprocessor ? 2 : 1;
}

// Into how many parts each of `groups` is cut, at most `most`, for `slots` blocks at a time: the fewest that leave
// hardly a block idle in the last wave, since what a block does once counts against it.
inline int parts_for(int64_t groups, int64_t most, int64_t slots) {
  if (groups == 0) throw std::invalid_argument("nothing to compute");
  const int64_t one_wave = std::max<int64_t>(1, slots / groups);
  int64_t best = one_wave;
  double best_share = 0.0;
  for (int64_t parts = one_wave; parts <= std::min(most, one_wave + 8); parts++) {
    const double share = double(groups * parts) / double(ceil_div(groups * parts, slots) * slots);
    if (share > best_share + 0.05) best = parts, best_share = share;
  }
  return static_cast<int>(std::min(best, most));
}

constexpr int64_t kMostBlocks = 65535;  // along y and z

inline void check_images(int64_t images) {
  if (images > kMostBlocks) throw std::invalid_argument("more than 65535 images");
}

inline dim3 grid_of(int64_t x, int64_t y, int64_t images) {
  check_images(images);
  if (y > kMostBlocks) throw std::invalid_argument("too many blocks for one launch");
  return dim3(blocks_for(x, 1), static_cast<unsigned>(y), static_cast<unsigned>(images));
}

// As kernels count the rows of an image: a tile beyond the last one still has a number.
inline int rows_of_image(int64_t rows) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (rows > kMost) throw std::invalid_argument("more than 2^30 samples of an image");
  return static_cast<int>(rows);
}

template <class T>
ProductPlan plan_product(int64_t batch, int rows, int columns, int depth, const T* x, bool wide) {
  const DeviceLimits device = device_limits();
  ProductPlan best = {}, plan = {};
  const bool broad = columns > kWarpColumns;
  plan.tile_rows = broad ? 128 : 256, plan.tile_columns = broad ? 128 : 64;
  plan.column_tiles = ceil_div(columns, plan.tile_columns);
  plan.steps = depth_steps(depth), plan.chunks = ceil_div(plan.steps, kChunkSteps<T>);
  plan.aligned = depth % kVectorWidth<T> == 0 && aligned_to(x, 16);
  plan.wide = wide;
  for (const bool resident : {true, false}) {
    for (const int stages : {3, 2}) {
      plan.stages = stages, plan.resident = resident;
      const size_t matrix_steps = resident ? plan.steps : stages * kChunkSteps<T>;
      plan.shared = shared_bytes<char>(size_t(stages) * plan.tile_rows * kStageRowBytes) +
                    shared_bytes<uint4>(matrix_steps * plan.tile_columns * 4) +
                    2 * shared_bytes<float>(plan.tile_columns);
      if (plan.shared > device.shared_block) continue;
      if (best.stages == 0 ||
          (best.resident == resident && blocks_resident(device, plan.shared) > blocks_resident(device, best.shared)))
        best = plan;
    }
  }
  if (best.stages == 0) throw std::invalid_argument("no tile of the product fits into shared memory");
  best.row_tiles = ceil_div(rows, best.tile_rows);
  best.parts = parts_for(batch * best.column_tiles, best.row_tiles,
                         int64_t{device.multiprocessors} * blocks_resident(device, best.shared));
  return best;
}

template <class E, class T, class Epilogue>
void launch_product(cudaStream_t stream, const T* x, const PackedMatrix& matrix, const Epilogue& epilogue,
                    int64_t batch, int64_t rows, bool wide, bool fast) {
  const ProductPlan plan = plan_product(batch, rows_of_image(rows), matrix.columns, matrix.depth, x, wide);
  const dim3 grid = grid_of(plan.column_tiles, plan.parts, batch);
  launch(product_kernel<E, T, Epilogue>, grid, kProductThreads, plan.shared, stream, x, matrix, epilogue, plan,
         static_cast<int>(rows), fast);
}

}  // namespace cips3d

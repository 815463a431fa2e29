// Calls to device functions, one after the other, whose results are known.
#include <cstring>
#include <utility>

#include "tensor_core.h"
#include "warpgroup.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace cips3d {
namespace {

// d = a b^T + c; a [16, 16], b [8, 16], c and d [16, 8].
__global__ void mma_kernel(int is_half, const uint16_t* a, const uint16_t* b, const float* c, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;
  const auto pair = [](const uint16_t* at) { return at[0] | static_cast<uint32_t>(at[1]) << 16; };
  const uint32_t a_fragment[4] = {pair(a + g * 16 + t), pair(a + (g + 8) * 16 + t), pair(a + g * 16 + t + 8),
                                  pair(a + (g + 8) * 16 + t + 8)};
  const uint32_t b_fragment[2] = {pair(b + g * 16 + t), pair(b + g * 16 + t + 8)};
  float sums[4];
  for (int k = 0; k < 4; k++) sums[k] = c[(g + k / 2 * 8) * 8 + t + k % 2];
  if (is_half)
    mma_m16n8k16_f16(sums, a_fragment, b_fragment, sums);
  else
    mma_m16n8k16_bf16(sums, a_fragment, b_fragment, sums);
  for (int k = 0; k < 4; k++) d[(g + k / 2 * 8) * 8 + t + k % 2] = sums[k];
}

template <int kMatrices, bool kTransposed>
__global__ void ldmatrix_kernel(const uint16_t* in,  // [8 * kMatrices, 8]
                                uint32_t* out) {     // [32, kMatrices]
  SharedArrays arrays;
  uint16_t* rows = arrays.take<uint16_t>(8 * kMatrices * 8);
  for (int k = threadIdx.x; k < 8 * kMatrices * 8; k += 32) rows[k] = in[k];
  __syncwarp();
  uint32_t registers[kMatrices];
  const uint16_t* row = rows + threadIdx.x % (8 * kMatrices) * 8;
  if constexpr (kMatrices == 4)
    kTransposed ? ldmatrix_x4_trans(registers, row) : ldmatrix_x4(registers, row);
  else
    kTransposed ? ldmatrix_x2_trans(registers, row) : ldmatrix_x2(registers, row);
  for (int m = 0; m < kMatrices; m++) out[threadIdx.x * kMatrices + m] = registers[m];
}

// Two groups of copies of rows of 4 floats: the first read when only it has come, with `bytes` of each row.
__global__ void copy_kernel(const float* in, float* first, float* second, int bytes) {
  SharedArrays arrays;
  float *a = arrays.take<float>(32 * 4), *b = arrays.take<float>(32 * 4);
  const int i = threadIdx.x;
  cp_async_16(a + i * 4, in + i * 4, bytes);
  cp_async_commit();
  cp_async_16(b + i * 4, in + i * 4);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  for (int k = 0; k < 4; k++) first[i * 4 + k] = a[i * 4 + k];
  cp_async_wait<0>();
  __syncthreads();
  for (int k = 0; k < 4; k++) second[i * 4 + k] = b[i * 4 + k];
}

constexpr int kWarpRows = 16;
__global__ void warp_kernel(const int* in, int64_t* out) {  // in [n], out [kWarpRows, n]
  const int i = threadIdx.x, n = blockDim.x, value = in[i];
  const bool low = i % 32 < 16;
  int row = 0;
  const auto put = [&](int64_t result) { out[row++ * n + i] = result; };
  put(__shfl_sync(~0u, value, 5));
  put(__shfl_sync(~0u, value, i + 1, 8));
  put(__shfl_xor_sync(~0u, value, 3));
  put(__shfl_up_sync(~0u, value, 2, 16));
  put(__shfl_down_sync(~0u, value, 7));
  put(static_cast<int64_t>(__shfl_xor_sync(~0u, static_cast<double>(value), 1)));
  put(low ? __shfl_xor_sync(0xffffu, value, 1) : __shfl_xor_sync(0xffff0000u, value, 2));
  put(__ballot_sync(~0u, value % 2));
  put(__any_sync(~0u, value == in[0]));
  put(__all_sync(~0u, value >= 0));
  put(__reduce_add_sync(~0u, value));
  put(__reduce_min_sync(~0u, value));
  put(__reduce_max_sync(~0u, -value));
  put(__reduce_xor_sync(~0u, static_cast<unsigned>(value)));
  put(__syncthreads_count(value % 2));
  put(2 * __syncthreads_and(value >= 0) + __syncthreads_or(value < 0));
}

// out [12]: sums, extremes and the like over all threads of all blocks.
__global__ void atomics_kernel(const int* in, int* out, float* sum) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, value = in[i];
  atomicAdd(out + 0, value);
  atomicSub(out + 1, value);
  atomicMax(out + 2, value);
  atomicMin(out + 3, value);
  atomicOr(out + 4, value);
  atomicAnd(out + 5, value);
  atomicXor(out + 6, value);
  if (atomicExch(out + 7, 1) == 0) atomicAdd(out + 8, 1);
  if (atomicCAS(out + 9, 0, value) == 0) atomicAdd(out + 10, 1);
  atomicAdd(sum, 1.0f);
}

// Every thread counts itself at its place, and notes when it came.
__global__ void indices_kernel(int* counts, int* order, int* next) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  counts[i]++;
  order[atomicAdd(next, 1)] = i;
}

// By name, so that the test reads as the function does. x [n], y [n].
__global__ void arithmetic_kernel(int function, const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i];
  float s, c;
  switch (function) {
    case 0: y[i] = __sinf(v); break;
    case 1: y[i] = __cosf(v); break;
    case 2: __sincosf(v, &s, &c), y[i] = s + 2.0f * c; break;
    case 3: y[i] = __expf(v); break;
    case 4: y[i] = __logf(v); break;
    case 5: y[i] = sinpif(v); break;
    case 6: y[i] = cospif(v); break;
    case 7: y[i] = rsqrtf(v); break;
    case 8: y[i] = __fdividef(v, 3.0f); break;
    case 9: y[i] = __saturatef(v); break;
    case 10: y[i] = __fadd_rn(__fmul_rn(v, v), -1.0f); break;  // two roundings
    case 11: y[i] = fmaf(v, v, -1.0f); break;                  // one
    case 12: y[i] = min(v, 0.5f); break;
    case 13: y[i] = max(__ldg(x + i), 0.5f); break;
    case 14: __stcs(y + i, __ldcs(x + i)); break;
  }
}

template <class T>
__global__ void fma_kernel(const uint16_t* a, const uint16_t* b, const uint16_t* c, uint16_t* d, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const auto number = [i](const uint16_t* from) { return emulation::bits_as<T>(from[i]); };
  d[i] = emulation::bits_as<uint16_t>(__hfma(number(a), number(b), number(c)));
}

// d = c + a bT; the operands' core matrices lie one after the other along the rows, or along the sum.
__global__ void warpgroup_kernel(bool rows_first, const uint16_t* a, const uint16_t* b, const float* c, float* d) {
  SharedArrays arrays;
  uint16_t* operands[2] = {arrays.take<uint16_t>(64 * 16), arrays.take<uint16_t>(256 * 16)};
  const auto place = [&](uint16_t* to, const uint16_t* from, int rows) {
    for (int i = threadIdx.x; i < rows * 16; i += 128) {
      const int row = i / 16, k = i % 16, core = rows_first ? k / 8 * (rows / 8) + row / 8 : row / 8 * 2 + k / 8;
      to[core * 64 + row % 8 * 8 + k % 8] = from[i];
    }
    return rows_first ? matrix_operand(to, rows * 16, 128) : matrix_operand(to, 128, 256);
  };
  const MatrixOperand left = place(operands[0], a, 64), right = place(operands[1], b, 256);
  const int lane = threadIdx.x % 32;
  const auto index = [&](int i) {
    const int row = threadIdx.x / 32 * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    return row * 256 + column;
  };
  float sums[128];
  for (int i = 0; i < 128; i++) sums[i] = c[index(i)];
  fence_for_async_reads();
  warpgroup_sync();
  wgmma_fence(sums);
  wgmma_m64n256k16_f16(sums, left, right);
  wgmma_commit();
  wgmma_wait<0>(sums);
  for (int i = 0; i < 128; i++) d[index(i)] = sums[i];
}

// d = a bT, or added to c: a [64, 16] in registers, b [64, 16].
// The last block of a cluster to arrive copies 128 numbers to all of them.
__global__ void cluster_kernel(const float* in, float* out, int* found) {
  SharedArrays arrays;
  float* numbers = arrays.take<float>(128);
  uint64_t* arrived = arrays.take<uint64_t>(1);
  unsigned* counter = arrays.take<unsigned>(1);
  if (threadIdx.x == 0) {
    phase_barrier_init(arrived, 1);
    phase_barrier_init_fence();
    *counter = 0;
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    phase_barrier_expect(arrived, 512);
    const unsigned before = arrive_at_cluster_counter(counter);
    if (before + 1 == cluster_size())
      copy_bulk_to_cluster<512>(numbers, in + blockIdx.x / cluster_size() * 128, arrived);
    int* of_block = found + 3 * blockIdx.x;
    of_block[0] = cluster_rank(), of_block[1] = cluster_size(), of_block[2] = before;
  }
  phase_barrier_wait(arrived, 0);
  out[128 * blockIdx.x + threadIdx.x] = numbers[threadIdx.x];
  cluster_sync();
}

template <bool kAdds>
__global__ void warpgroup_registers_kernel(const uint16_t* a, const uint16_t* b, const float* c, float* d) {
  SharedArrays arrays;
  uint16_t* columns = arrays.take<uint16_t>(64 * 16);
  for (int i = threadIdx.x; i < 64 * 16; i += 128)
    columns[(i % 16 / 8 * 8 + i / 16 / 8) * 64 + i / 16 % 8 * 8 + i % 8] = b[i];
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16 + lane / 4, pair = lane % 4 * 2;
  uint32_t rows[1][4];
  for (int i = 0; i < 4; i++) std::memcpy(&rows[0][i], a + (first + i % 2 * 8) * 16 + i / 2 * 8 + pair, 4);
  const auto index = [&](int i) { return (first + i % 4 / 2 * 8) * 64 + i / 4 * 8 + pair + i % 2; };
  float sums[32];
  for (int i = 0; i < 32; i++) sums[i] = c[index(i)];
  fence_for_async_reads();
  warpgroup_sync();
  wgmma_fence(sums, rows);
  wgmma_m64n64k16_f16<kAdds>(sums, rows[0], matrix_operand(columns, 1024, 128));
  wgmma_commit();
  wgmma_wait<0>(sums, rows);
  for (int i = 0; i < 32; i++) d[index(i)] = sums[i];
}

}  // namespace
}  // namespace cips3d

using namespace cips3d;

namespace {

std::string error;

// launch, for callers that no exception can reach.
template <class Kernel, class... Arguments>
void run_clusters(Kernel kernel, int cluster, Arguments... arguments) {
  try {
    launch_clusters(kernel, cluster, arguments...);
  } catch (const std::exception& e) {
    error = e.what();
  }
}
template <class Kernel, class... Arguments>
void run(Kernel kernel, Arguments... arguments) {
  run_clusters(kernel, 1, arguments...);
}

}  // namespace

// What went wrong since the last call, or an empty string.
EXPORTED const char* last_error() {
  static std::string last;
  last = std::exchange(error, "");
  return last.c_str();
}

EXPORTED void set_schedule(uint64_t seed) { emulation::set_schedule(seed); }

EXPORTED void mma(int is_half, const uint16_t* a, const uint16_t* b, const float* c, float* d) {
  run(mma_kernel, 1, 32, 0, nullptr, is_half, a, b, c, d);
}
EXPORTED void warpgroup(int rows_first, const uint16_t* a, const uint16_t* b, const float* c, float* d) {
  const size_t bytes = shared_bytes<uint16_t>(64 * 16) + shared_bytes<uint16_t>(256 * 16);
  run(warpgroup_kernel, 1, 128, bytes, nullptr, rows_first != 0, a, b, c, d);
}
EXPORTED void warpgroup_registers(int adds, const uint16_t* a, const uint16_t* b, const float* c, float* d) {
  const auto kernel = adds ? warpgroup_registers_kernel<true> : warpgroup_registers_kernel<false>;
  run(kernel, 1, 128, shared_bytes<uint16_t>(64 * 16), nullptr, a, b, c, d);
}
EXPORTED void cluster(int size, int blocks, const float* in, float* out, int* found) {
  const size_t bytes = shared_bytes<float>(128) + shared_bytes<uint64_t>(1) + shared_bytes<unsigned>(1);
  run_clusters(cluster_kernel, size, blocks, 128, bytes, nullptr, in, out, found);
}
EXPORTED void ldmatrix(int matrices, int transposed, const uint16_t* in, uint32_t* out) {
  const auto kernel = matrices == 4 ? (transposed ? ldmatrix_kernel<4, true> : ldmatrix_kernel<4, false>)
                                    : (transposed ? ldmatrix_kernel<2, true> : ldmatrix_kernel<2, false>);
  run(kernel, 1, 32, shared_bytes<uint16_t>(8 * matrices * 8), nullptr, in, out);
}
EXPORTED void copy(const float* in, float* first, float* second, int bytes) {
  run(copy_kernel, 1, 32, 2 * shared_bytes<float>(32 * 4), nullptr, in, first, second, bytes);
}
EXPORTED int warp_rows() { return kWarpRows; }
EXPORTED void warp_functions(const int* in, int64_t* out, int n) { run(warp_kernel, 1, n, 0, nullptr, in, out); }
EXPORTED void atomics(const int* in, int* out, float* sum, int blocks, int threads) {
  run(atomics_kernel, blocks, threads, 0, nullptr, in, out, sum);
}
EXPORTED void indices(const unsigned* grid, const unsigned* block, int* counts, int* order, int* next) {
  run(indices_kernel, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), 0, nullptr, counts, order,
      next);
}
EXPORTED void arithmetic(int function, const float* x, float* y, int n) {
  run(arithmetic_kernel, ceil_div(n, 128), 128, 0, nullptr, function, x, y, n);
}
EXPORTED void fma16(int is_half, const uint16_t* a, const uint16_t* b, const uint16_t* c, uint16_t* d, int n) {
  run(is_half ? fma_kernel<half> : fma_kernel<bfloat16>, ceil_div(n, 128), 128, 0, nullptr, a, b, c, d, n);
}
EXPORTED void to_floats(int is_half, const uint16_t* in, float* out, int n) {
  for (int i = 0; i < n; i++)
    out[i] =
        is_half ? __half2float(emulation::bits_as<half>(in[i])) : __bfloat162float(emulation::bits_as<bfloat16>(in[i]));
}
EXPORTED void from_floats(int is_half, const float* in, uint16_t* out, int n) {
  for (int i = 0; i < n; i++)
    out[i] = is_half ? __half_as_ushort(__float2half_rn(in[i])) : __bfloat16_as_ushort(__float2bfloat16_rn(in[i]));
}

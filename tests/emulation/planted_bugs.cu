// Kernels that are right, and with `bug` wrong in one way each: what the emulation and the sanitizers have to find.
// A line that a report has to name ends with the case's name.
#include <cstdio>
#include <cstring>

#include "planted_warpgroup_bugs.h"
#include "tensor_core.h"

namespace cips3d {
namespace {

constexpr int kThreads = 256;

// Each thread takes another one's element.
__global__ void missing_syncthreads(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* shared = arrays.take<float>(kThreads);
  const int i = threadIdx.x;
  shared[i] = in[i];
  if (!bug) __syncthreads();
  out[i] = shared[(i + 37) % kThreads];  // missing_syncthreads
}

// The last thread adds up what every warp has left: in index order it comes last anyway.
__global__ void hidden_by_index_order(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* sums = arrays.take<float>(kThreads / 32);
  float sum = in[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  if (!bug) __syncthreads();
  if (threadIdx.x == kThreads - 1) {
    float total = 0.0f;
    for (int w = 0; w < kThreads / 32; w++) total += sums[w];  // hidden_by_index_order
    out[0] = total;
  }
}

// The array is filled again before all have read it.
__global__ void overwritten_too_early(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* shared = arrays.take<float>(kThreads);
  const int i = threadIdx.x;
  shared[i] = in[i];
  __syncthreads();
  out[i] = shared[kThreads - 1 - i];
  if (!bug) __syncthreads();
  shared[i] = 2.0f * in[i];  // overwritten_too_early
  __syncthreads();
  out[kThreads + i] = shared[kThreads - 1 - i];
}

// The middle registers of A are the second eight rows, then the second eight columns.
__global__ void fragment_index(const float* in, float* out, bool bug) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;
  const auto pair = [&](int row, int column) {
    const half2 two = __floats2half2_rn(in[row * 16 + column], in[row * 16 + column + 1]);
    uint32_t bits;
    memcpy(&bits, &two, sizeof bits);
    return bits;
  };
  const uint32_t below = pair(g + 8, t), beside = pair(g, t + 8);
  const uint32_t a[4] = {pair(g, t), bug ? beside : below, bug ? below : beside, pair(g + 8, t + 8)};
  const uint32_t b[2] = {pair(g, t), pair(g, t + 8)};
  float d[4] = {};
  mma_m16n8k16_f16(d, a, b, d);
  for (int k = 0; k < 4; k++) out[threadIdx.x * 4 + k] = d[k];
}

__global__ void uninitialised_sum(const float* in, float* out, bool bug) {
  float sums[4];
  for (int k = bug ? 2 : 0; k < 4; k++) sums[k] = 0.0f;
  for (int k = 0; k < 4; k++) sums[k] += in[threadIdx.x * 4 + k];
  for (int k = 0; k < 4; k++) out[threadIdx.x * 4 + k] = sums[k];
}

__global__ void shared_read_past_the_end(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* first = arrays.take<float>(kThreads);
  float* last = arrays.take<float>(kThreads);
  const int i = threadIdx.x;
  first[i] = in[i], last[i] = -in[i];
  __syncthreads();
  out[i] = first[i] + last[i + (bug ? kThreads : 0)];  // shared_read_past_the_end
}

__global__ void shared_write_out_of_bounds(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* first = arrays.take<float>(kThreads);
  float* last = arrays.take<float>(kThreads);
  const int i = threadIdx.x;
  first[i + (bug && i == 7 ? kThreads : 0)] = in[i];  // shared_write_out_of_bounds
  last[i] = 0.0f;
  __syncthreads();
  out[i] = last[i];
}

// Copies go to shared memory in the background.
template <int kGroupsLeft>
__device__ void copy_and_reverse(const float* in, float* out, bool wait) {
  SharedArrays arrays;
  float* shared = arrays.take<float>(kThreads * 4);
  const int i = threadIdx.x;
  cp_async_16(shared + i * 4, in + i % 64 * 4);
  cp_async_commit();
  if (wait) cp_async_wait<kGroupsLeft>();
  __syncthreads();
  out[i] = shared[kThreads * 4 - 1 - i * 4];
}
__global__ void missing_copy_wait(const float* in, float* out, bool bug) { copy_and_reverse<0>(in, out, !bug); }
__global__ void copy_wait_for_too_few(const float* in, float* out, bool bug) {
  if (bug)
    copy_and_reverse<1>(in, out, true);
  else
    copy_and_reverse<0>(in, out, true);
}
__global__ void copy_read_without_barrier(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* shared = arrays.take<float>(kThreads * 4);
  const int i = threadIdx.x;
  cp_async_16(shared + i * 4, in + i % 64 * 4);
  cp_async_commit();
  cp_async_wait<0>();
  if (!bug) __syncthreads();
  out[i] = shared[kThreads * 4 - 1 - i * 4];  // copy_read_without_barrier
}

__global__ void return_before_barrier(const float* in, float* out, bool bug) {
  const int i = threadIdx.x;
  if (bug && i >= 100) return;
  __syncthreads();  // return_before_barrier
  out[i] = in[i];
}

__global__ void barriers_at_different_lines(const float* in, float* out, bool bug) {
  if (threadIdx.x < 32 || !bug) {
    __syncthreads();  // barriers_at_different_lines
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void mixed_warp_operations(const float* in, float* out, bool bug) {
  float value = in[threadIdx.x];
  if (bug && threadIdx.x % 2 == 1)
    __syncwarp();
  else
    value = __shfl_sync(~0u, value, 0);  // mixed_warp_operations
  out[threadIdx.x] = value;
}

__global__ void shuffle_from_absent_lane(const float* in, float* out, bool bug) {
  float value = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) value = __shfl_sync(0xffffu, value, bug ? 20 : 10);  // shuffle_from_absent_lane
  out[threadIdx.x] = value;
}

__global__ void not_in_own_mask(const float* in, float* out, bool bug) {
  float value = in[threadIdx.x];
  if (bug || threadIdx.x % 32 < 16) value = __shfl_sync(0xffffu, value, 10);
  out[threadIdx.x] = value;
}

__global__ void mma_of_half_a_warp(const float* in, float* out, bool bug) {
  const uint32_t a[4] = {}, b[2] = {};
  float d[4] = {in[0], in[1], in[2], in[3]};
  if (!bug || threadIdx.x < 16) mma_m16n8k16_bf16(d, a, b, d);  // mma_of_half_a_warp
  out[threadIdx.x] = d[0];
}

__global__ void misaligned_ldmatrix(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  half* shared = arrays.take<half>(32 * 16);
  for (int k = threadIdx.x; k < 32 * 16; k += 32) shared[k] = __float2half_rn(in[k % kThreads]);
  __syncwarp();
  uint32_t registers[4];
  ldmatrix_x4(registers, shared + threadIdx.x * (bug ? 12 : 8));  // misaligned_ldmatrix
  out[threadIdx.x] = __uint_as_float(registers[0]);
}

__global__ void ldmatrix_out_of_bounds(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  half* shared = arrays.take<half>(32 * 8);
  for (int k = threadIdx.x; k < 32 * 8; k += 32) shared[k] = __float2half_rn(in[k]);
  __syncwarp();
  uint32_t registers[4];
  ldmatrix_x4(registers, shared + threadIdx.x * 8 + (bug ? 8 : 0));  // ldmatrix_out_of_bounds
  out[threadIdx.x] = __uint_as_float(registers[0]);
}

__global__ void too_much_shared_memory(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* shared = arrays.take<float>(bug ? 2 * kThreads : kThreads);
  shared[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void disagreeing_arrays(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* shared = arrays.take<float>(kThreads - (bug ? threadIdx.x % 2 : 0));
  shared[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void trapped(const float* in, float* out, bool bug) {
  if (bug && threadIdx.x == 7) __trap();  // trapped
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void static_read_past_the_end(const float* in, float* out, bool bug) {
  __shared__ float shared[kThreads];
  const int i = threadIdx.x;
  shared[i] = in[i];
  __syncthreads();
  out[i] = shared[i + (bug && i == kThreads - 1 ? 1 : 0)];  // static_read_past_the_end
}

__global__ void global_write_past_the_end(const float* in, float* out, bool bug) {
  out[threadIdx.x] = in[threadIdx.x];
  if (bug && threadIdx.x == 0) out[2 * kThreads] = 1.0f;  // global_write_past_the_end
}

__global__ void copy_from_past_the_end(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* shared = arrays.take<float>(4);
  if (threadIdx.x == 0) cp_async_16(shared, in + kThreads - (bug ? 0 : 4));  // copy_from_past_the_end
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x % 4];
}

__global__ void misaligned_vector(const float* in, float* out, bool bug) {
  const float4 four = *reinterpret_cast<const float4*>(in + (bug ? 1 : 0));  // misaligned_vector
  out[threadIdx.x] = four.x;
}

// Right by luck where lanes go in pairs; nothing orders them.
__global__ void missing_syncwarp(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  float* shared = arrays.take<float>(kThreads);
  const int i = threadIdx.x;
  shared[i] = in[i];
  if (!bug) __syncwarp();
  out[i] = shared[i ^ 1];  // missing_syncwarp
}

__global__ void missing_syncwarp_before_ldmatrix(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  half* shared = arrays.take<half>(32 * 8);
  for (int k = 0; k < 8; k++) shared[threadIdx.x * 8 + k] = __float2half_rn(in[k]);
  if (!bug) __syncwarp();
  uint32_t registers[4];
  ldmatrix_x4(registers, shared + threadIdx.x * 8);  // missing_syncwarp_before_ldmatrix
  out[threadIdx.x] = static_cast<float>(registers[0]);
}

__global__ void unordered_sum_across_blocks(const float* in, float* out, bool bug) {
  if (threadIdx.x != 0) return;
  if (bug)
    out[0] += in[blockIdx.x];  // unordered_sum_across_blocks
  else
    atomicAdd(out, in[blockIdx.x]);
}

// Right: the last block to finish adds up what the others have left.
__global__ void sum_by_the_last_block(const float* in, float* out, bool bug) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    out[blockIdx.x] = in[blockIdx.x];
    if (!bug) __threadfence();
    last = atomicAdd(reinterpret_cast<unsigned*>(out + kThreads), 1u) == gridDim.x - 1;
    if (!bug) __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  float sum = 0.0f;
  for (unsigned b = 0; b < gridDim.x; b++) sum += out[b];  // sum_by_the_last_block
  out[kThreads] = sum;
}

#if defined(__CUDACC__) || defined(CIPS3D_PTX)
// __ldg may go through a cache that does not see the kernel's own writes.
__global__ void written_and_read_only(const float* in, float* out, bool bug) {
  const int i = threadIdx.x;
  out[i] = 2.0f * in[i];
  __syncthreads();
  out[kThreads + i] = __ldg((bug ? out : in) + (i + 128) % kThreads);  // written_and_read_only
}
#endif

struct Case {
  const char* name;
  void (*kernel)(const float*, float*, bool);
  int blocks, threads;
  size_t shared;
  int cluster = 1;
};

constexpr size_t kOneArray = shared_bytes<float>(kThreads);
constexpr size_t kSecondOperand = shared_bytes<half>(16 * 64);
constexpr size_t kOperands = shared_bytes<half>(16 * kOperandRows) + shared_bytes<half>(16 * kOperandColumns);
constexpr size_t kBulkCopy = shared_bytes<float>(128) + shared_bytes<uint64_t>(2);
#define CASE(kernel, blocks, threads, shared) {#kernel, kernel, blocks, threads, shared}
#define CLUSTER_CASE(kernel) {#kernel, kernel, 2, 128, kBulkCopy + shared_bytes<unsigned>(1), 2}
const Case kCases[] = {
    CASE(missing_syncthreads, 1, kThreads, kOneArray),
    CASE(hidden_by_index_order, 1, kThreads, kOneArray),
    CASE(overwritten_too_early, 1, kThreads, kOneArray),
    CASE(fragment_index, 1, 32, 0),
    CASE(uninitialised_sum, 1, 64, 0),
    CASE(shared_read_past_the_end, 1, kThreads, 2 * kOneArray),
    CASE(shared_write_out_of_bounds, 1, kThreads, 2 * kOneArray),
    CASE(missing_copy_wait, 1, kThreads, 4 * kOneArray),
    CASE(copy_wait_for_too_few, 1, kThreads, 4 * kOneArray),
    CASE(copy_read_without_barrier, 1, kThreads, 4 * kOneArray),
    CASE(return_before_barrier, 1, kThreads, 0),
    CASE(barriers_at_different_lines, 1, kThreads, 0),
    CASE(mixed_warp_operations, 1, 32, 0),
    CASE(shuffle_from_absent_lane, 1, kThreads, 0),
    CASE(not_in_own_mask, 1, kThreads, 0),
    CASE(mma_of_half_a_warp, 1, 32, 0),
    CASE(misaligned_ldmatrix, 1, 32, kOneArray),
    CASE(ldmatrix_out_of_bounds, 1, 32, kOneArray),
    CASE(too_much_shared_memory, 1, kThreads, kOneArray),
    CASE(disagreeing_arrays, 1, kThreads, kOneArray),
    CASE(trapped, 1, kThreads, 0),
    CASE(static_read_past_the_end, 1, kThreads, 0),
    CASE(global_write_past_the_end, 1, kThreads, 0),
    CASE(copy_from_past_the_end, 1, kThreads, 16),
    CASE(misaligned_vector, 1, kThreads, 0),
    CASE(missing_syncwarp, 1, kThreads, kOneArray),
    CASE(missing_syncwarp_before_ldmatrix, 1, 32, 512),
    CASE(unordered_sum_across_blocks, 8, 32, 0),
    CASE(sum_by_the_last_block, 8, 32, 0),
    CASE(sums_read_before_the_wait, 1, 128, kOperands),
    CASE(missing_wgmma_fence, 1, 128, kOperands),
    CASE(missing_fence_for_async_reads, 1, 128, kOperands),
    CASE(operands_overwritten_in_flight, 1, 128, kOperands),
    CASE(missing_warpgroup_sync, 1, 128, kOperands),
    CASE(operand_out_of_bounds, 1, 128, kOperands),
    CASE(registers_overwritten_in_flight, 1, 128, kSecondOperand),
    CASE(sums_of_a_later_group_read, 1, 128, kSecondOperand),
    CASE(missing_wgmma_fence_of_registers, 1, 128, kSecondOperand),
    CASE(warpgroup_sync_of_three_warps, 1, 128, 0),
    CASE(bulk_copy_read_before_the_wait, 1, 128, kBulkCopy),
    CASE(bulk_copy_over_what_is_read, 1, 128, kBulkCopy),
    CASE(bulk_copy_out_of_bounds, 1, 128, kBulkCopy),
    CASE(more_bytes_expected_than_copied, 1, 128, kBulkCopy),
    CASE(bulk_copy_nobody_waits_for, 1, 128, kBulkCopy),
    CLUSTER_CASE(cluster_reached_too_early),
    CLUSTER_CASE(cluster_left_too_early),
    CLUSTER_CASE(cluster_copy_over_what_is_read),
#if defined(__CUDACC__) || defined(CIPS3D_PTX)
    CASE(written_and_read_only, 1, kThreads, 0),
#endif
};

}  // namespace
}  // namespace cips3d

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* case_name(int index) {
  return index < static_cast<int>(std::size(cips3d::kCases)) ? cips3d::kCases[index].name : nullptr;
}

#if defined(CIPS3D_PTX)
EXPORTED void load_ptx(const char* path) { ptx::load(path); }
#endif

// Runs a case on in [256] and out [512], or writes what went wrong into `error` [512].
EXPORTED void run_case(int index, int bug, uint64_t seed, const float* in, float* out, char* error) {
  using namespace cips3d;
  const Case& c = kCases[index];
  error[0] = '\0';
#if !defined(__CUDACC__)
  emulation::set_schedule(seed);
#endif
  try {
    launch_clusters(c.kernel, c.cluster, c.blocks, c.threads, c.shared, nullptr, in, out, bug != 0);
  } catch (const std::runtime_error& e) {
    std::snprintf(error, 512, "%s", e.what());
  }
}

// Launches a kernel that does nothing.
EXPORTED void run_configuration(const unsigned* grid, const unsigned* block, int cluster, uint64_t shared,
                                char* error) {
  using namespace cips3d;
  const float* in = nullptr;
  float* out = nullptr;
  error[0] = '\0';
  try {
    const auto nothing = +[](const float*, float*, bool) {};
    launch_clusters(nothing, cluster, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared,
                    nullptr, in, out, true);
  } catch (const std::runtime_error& e) {
    std::snprintf(error, 512, "%s", e.what());
  }
}

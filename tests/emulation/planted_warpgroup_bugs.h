// Kernels of one warpgroup, or of two in a cluster, right and with `bug` wrong in one way each; see planted_bugs.cu.
#pragma once
#include "operand.h"
#include "warpgroup.h"

namespace cips3d {
namespace {

constexpr int kOperandRows = 64, kOperandColumns = 256, kCoreHalves = 64;  // 8 rows of 8 halves

// Operands of a product and what becomes of it: out[i] is the sum of thread i's numbers.
struct WarpgroupProduct {
  half *a, *b;
  float sums[128] = {};

  __device__ explicit WarpgroupProduct(SharedArrays& arrays)
      : a(arrays.take<half>(16 * kOperandRows)), b(arrays.take<half>(16 * kOperandColumns)) {}

  __device__ void fill(const float* in, float scale) {
    for (int i = threadIdx.x; i < 16 * kOperandRows; i += 128) a[i] = __float2half_rn(scale * in[i % 256]);
    for (int i = threadIdx.x; i < 16 * kOperandColumns; i += 128) b[i] = __float2half_rn(in[255 - i % 256]);
  }
  __device__ MatrixOperand first(int offset = 0) const { return matrix_operand(a + offset, 1024, 128); }
  __device__ MatrixOperand second() const { return matrix_operand(b, 4096, 128); }
  __device__ void write(float* out) const {
    float total = 0.0f;
    for (int i = 0; i < 128; i++) total += sums[i];
    out[threadIdx.x] = total;
  }
};

__global__ void sums_read_before_the_wait(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  WarpgroupProduct product(arrays);
  product.fill(in, 1.0f);
  fence_for_async_reads();
  warpgroup_sync();
  wgmma_fence(product.sums);
  wgmma_m64n256k16_f16(product.sums, product.first(), product.second());
  wgmma_commit();
  if (bug) product.write(out);
  wgmma_wait<0>(product.sums);
  if (!bug) product.write(out);
}

__global__ void missing_wgmma_fence(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  WarpgroupProduct product(arrays);
  product.fill(in, 1.0f);
  fence_for_async_reads();
  warpgroup_sync();
  if (!bug) wgmma_fence(product.sums);
  wgmma_m64n256k16_f16(product.sums, product.first(), product.second());  // missing_wgmma_fence
  wgmma_commit();
  wgmma_wait<0>(product.sums);
  product.write(out);
}

// One warp of four does not pass on what it has written.
__global__ void missing_fence_for_async_reads(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  WarpgroupProduct product(arrays);
  product.fill(in, 1.0f);
  if (!bug || threadIdx.x / 32 != 2) fence_for_async_reads();
  warpgroup_sync();
  wgmma_fence(product.sums);
  wgmma_m64n256k16_f16(product.sums, product.first(), product.second());  // missing_fence_for_async_reads
  wgmma_commit();
  wgmma_wait<0>(product.sums);
  product.write(out);
}

// The next operands come before the product has read the first ones.
__global__ void operands_overwritten_in_flight(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  WarpgroupProduct product(arrays);
  product.fill(in, 1.0f);
  fence_for_async_reads();
  warpgroup_sync();
  wgmma_fence(product.sums);
  wgmma_m64n256k16_f16(product.sums, product.first(), product.second());
  wgmma_commit();
  if (!bug) wgmma_wait<0>(product.sums);
  warpgroup_sync();
  product.a[threadIdx.x] = __float2half_rn(0.0f);  // operands_overwritten_in_flight
  if (bug) wgmma_wait<0>(product.sums);
  product.write(out);
}

__global__ void missing_warpgroup_sync(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  WarpgroupProduct product(arrays);
  product.fill(in, 1.0f);
  fence_for_async_reads();
  if (!bug) warpgroup_sync();
  wgmma_fence(product.sums);
  wgmma_m64n256k16_f16(product.sums, product.first(), product.second());  // missing_warpgroup_sync
  wgmma_commit();
  wgmma_wait<0>(product.sums);
  product.write(out);
}

__global__ void operand_out_of_bounds(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  WarpgroupProduct product(arrays);
  product.fill(in, 1.0f);
  fence_for_async_reads();
  warpgroup_sync();
  wgmma_fence(product.sums);
  wgmma_m64n256k16_f16(product.sums, product.first(bug ? 64 : 0), product.second());  // operand_out_of_bounds
  wgmma_commit();
  wgmma_wait<0>(product.sums);
  product.write(out);
}

// The same products with a first operand in registers: two groups of them, for two arrays of sums.
struct RegisterProducts {
  half* b;
  uint32_t a[2][4];
  float sums[2][32];

  __device__ RegisterProducts(SharedArrays& arrays, const float* in) : b(arrays.take<half>(16 * 64)) {
    for (int i = threadIdx.x; i < 16 * 64; i += 128) b[i] = __float2half_rn(in[255 - i % 256]);
    for (int i = 0; i < 8; i++) a[i / 4][i % 4] = Operand<half>::pack(in[threadIdx.x], in[(threadIdx.x + i) % 256]);
    fence_for_async_reads();
    warpgroup_sync();
  }
  __device__ void start(int group) {
    const MatrixOperand second = matrix_operand(b, 1024, 128);
    wgmma_m64n64k16_f16<false>(sums[group], a[group], second);  // missing_wgmma_fence_of_registers
    wgmma_commit();
  }
  __device__ void write(int group, float* out) const {
    float total = 0.0f;
    for (int i = 0; i < 32; i++) total += sums[group][i];
    out[threadIdx.x] = total;
  }
};

__global__ void registers_overwritten_in_flight(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  RegisterProducts products(arrays, in);
  wgmma_fence(products.a);
  products.start(0);
  if (bug) products.a[0][1] = 0;
  wgmma_wait<0>(products.sums[0], products.a);
  products.write(0, out);
}

__global__ void sums_of_a_later_group_read(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  RegisterProducts products(arrays, in);
  wgmma_fence(products.a);
  products.start(0);
  products.start(1);
  if (bug)
    wgmma_wait<1>(products.sums[0], products.sums[1]);
  else
    wgmma_wait<0>(products.sums[0], products.sums[1]);
  products.write(1, out);
  if (bug) wgmma_wait<0>(products.sums[1]);
}

// The second operand is written after the fence.
__global__ void missing_wgmma_fence_of_registers(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  RegisterProducts products(arrays, in);
  wgmma_fence(products.a);
  products.start(0);
  wgmma_wait<0>(products.sums[0]);
  products.a[1][0] = products.a[0][1];
  if (!bug) wgmma_fence(products.a);
  products.start(1);
  wgmma_wait<0>(products.sums[1]);
  products.write(1, out);
}

__global__ void warpgroup_sync_of_three_warps(const float* in, float* out, bool bug) {
  if (!bug || threadIdx.x >= 32) warpgroup_sync();  // warpgroup_sync_of_three_warps
  out[threadIdx.x] = in[threadIdx.x];
}

// Thread 0 copies 128 floats, which all take in the other order.
struct BulkCopy {
  float* numbers;
  uint64_t* arrived;  // [2]

  __device__ explicit BulkCopy(SharedArrays& arrays)
      : numbers(arrays.take<float>(128)), arrived(arrays.take<uint64_t>(2)) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; i++) phase_barrier_init(arrived + i, 1);
      phase_barrier_init_fence();
    }
    __syncthreads();
  }
  __device__ void start(const float* in, int expected = 512, int barrier = 0) const {
    if (threadIdx.x > 0) return;
    phase_barrier_expect(arrived + barrier, expected);
    copy_bulk<512>(numbers, in, arrived + barrier);
  }
};

__global__ void bulk_copy_read_before_the_wait(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  const BulkCopy copy(arrays);
  copy.start(in);
  __syncthreads();
  if (bug) out[threadIdx.x] = copy.numbers[127 - threadIdx.x];
  phase_barrier_wait(copy.arrived, 0);
  if (!bug) out[threadIdx.x] = copy.numbers[127 - threadIdx.x];
}

__global__ void bulk_copy_over_what_is_read(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  const BulkCopy copy(arrays);
  copy.start(in);
  phase_barrier_wait(copy.arrived, 0);
  out[threadIdx.x] = copy.numbers[127 - threadIdx.x];  // bulk_copy_over_what_is_read
  if (!bug) __syncthreads();
  copy.start(in + 128, 512, 1);
  phase_barrier_wait(copy.arrived + 1, 0);
}

__global__ void bulk_copy_out_of_bounds(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  const BulkCopy copy(arrays);
  if (threadIdx.x == 0) {
    phase_barrier_expect(copy.arrived, 512);
    copy_bulk<512>(copy.numbers + (bug ? 4 : 0), in, copy.arrived);  // bulk_copy_out_of_bounds
  }
  phase_barrier_wait(copy.arrived, 0);
  out[threadIdx.x] = copy.numbers[127 - threadIdx.x];
}

__global__ void more_bytes_expected_than_copied(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  const BulkCopy copy(arrays);
  copy.start(in, bug ? 528 : 512);
  phase_barrier_wait(copy.arrived, 0);  // more_bytes_expected_than_copied
  out[threadIdx.x] = copy.numbers[127 - threadIdx.x];
}

__global__ void bulk_copy_nobody_waits_for(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  const BulkCopy copy(arrays);
  copy.start(in);
  if (!bug) phase_barrier_wait(copy.arrived, 0);
  out[threadIdx.x] = in[threadIdx.x];
}

// What two blocks share: a copy for both, once both have arrived at the first one's counter.
struct ClusterCopy : BulkCopy {
  unsigned* counter;

  __device__ explicit ClusterCopy(SharedArrays& arrays) : BulkCopy(arrays), counter(arrays.take<unsigned>(1)) {
    if (threadIdx.x == 0) *counter = 0;
  }
  __device__ void expect(int barrier) const { phase_barrier_expect(arrived + barrier, 512); }
  __device__ void start_for_both(const float* in, int barrier) const {
    copy_bulk_to_cluster<512>(numbers, in, arrived + barrier);
  }
};

// Keeps the second block busy.
__device__ void be_late() {
  for (int i = 0; cluster_rank() == 1 && i < 8; i++) __syncthreads();
}

__global__ void cluster_reached_too_early(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  be_late();
  const ClusterCopy copy(arrays);
  if (!bug) cluster_sync();
  if (threadIdx.x == 0) {
    copy.expect(0);
    if (cluster_rank() == 0) copy.start_for_both(in, 0);
  }
  phase_barrier_wait(copy.arrived, 0);
  out[128 * blockIdx.x + threadIdx.x] = copy.numbers[127 - threadIdx.x];
}

__global__ void cluster_left_too_early(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  const ClusterCopy copy(arrays);
  cluster_sync();
  be_late();
  if (cluster_rank() == 1 && threadIdx.x == 0) out[256] = static_cast<float>(arrive_at_cluster_counter(copy.counter));
  out[128 * blockIdx.x + threadIdx.x] = in[threadIdx.x];
  if (!bug) cluster_sync();
}

__global__ void cluster_copy_over_what_is_read(const float* in, float* out, bool bug) {
  SharedArrays arrays;
  const ClusterCopy copy(arrays);
  cluster_sync();
  if (threadIdx.x == 0) {
    copy.expect(0);
    if (arrive_at_cluster_counter(copy.counter) == 1) copy.start_for_both(in, 0);
  }
  phase_barrier_wait(copy.arrived, 0);
  be_late();
  out[128 * blockIdx.x + threadIdx.x] = copy.numbers[127 - threadIdx.x];  // cluster_copy_over_what_is_read
  __syncthreads();
  if (threadIdx.x == 0) {
    copy.expect(1);
    if (bug ? cluster_rank() == 0 : arrive_at_cluster_counter(copy.counter) == 3) copy.start_for_both(in + 128, 1);
  }
  phase_barrier_wait(copy.arrived + 1, 0);
  out[256 + 128 * blockIdx.x + threadIdx.x] = copy.numbers[127 - threadIdx.x];
  cluster_sync();
}

}  // namespace
}  // namespace cips3d

// What compute capability 9.0 alone has: matrix instructions whose operands lie in shared memory (wgmma), copies in
// bulk and the barriers they report to. PTX under nvcc, the emulation otherwise. PTX ISA, "Asynchronous warpgroup level
// matrix instructions" and "cp.async.bulk".
//
// A warpgroup is four warps in a row, from a multiple of 128 threads on. Together they multiply: A [64, 16] times B
// [N, 16] transposed, both float16 (or bfloat16, of 256 columns), added to [64, N] fp32. Warp w of the group has rows
// 16 w to 16 w + 15, its thread (lane = 4 * g + t) sums[4 * n + i]: (16 w + g + i / 2 * 8, 8 * n + 2 * t + i % 2). B
// lies in shared memory; so does A, or its rows are in the warps' registers, as operands A of mma_m16n8k16.
//
// The order of things:
//   wgmma_fence(registers...)   the thread's accesses to the sums and to operands in registers are over
//   wgmma_m64n..k16_..(...)     any number of them; they start, and are added in this order
//   wgmma_commit()              closes a group of them
//   wgmma_wait<N>(registers...) all groups but the last N are over, their operands read; of these registers, those that
//                               no later group has are the thread's again
// What threads write to operands in shared memory needs fence_for_async_reads() by the writers and then a barrier.
#pragma once
#include "tensor_core.h"

// Whether the code that is being compiled may have any of it: that for sm_90a alone, not for sm_90.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CIPS3D_HAS_WGMMA 1
#else
#define CIPS3D_HAS_WGMMA 0
#endif
namespace cips3d {
constexpr bool kHasWarpgroups = CIPS3D_HAS_WGMMA;

// Whether matrix instructions may have transposed operands. ptxas before 13.0.88 is known to get some of them wrong
// where there is no swizzle (reported with triton-lang/triton, pull request 8378).
#if defined(__CUDACC__) && \
    __CUDACC_VER_MAJOR__ * 1000000 + __CUDACC_VER_MINOR__ * 10000 + __CUDACC_VER_BUILD__ < 13000088
constexpr bool kTransposesOperands = false;
#else
constexpr bool kTransposesOperands = true;
#endif
}  // namespace cips3d

#if !defined(__CUDACC__)
#include "emulation/warpgroup.h"
#else

namespace cips3d {

// An operand: core matrices of 8 rows of 16 bytes (8 elements of the sum), one row after the other, 128 bytes that are
// aligned to 16; of a transposed operand they are 8 elements of the sum, and in each 8 rows. The next 8 elements lie
// k_bytes on, the next 8 rows row_bytes; both below 2^18.
struct MatrixOperand {
  uint32_t low, high;  // of the descriptor

  // Another one, so many bytes on.
  __device__ __forceinline__ MatrixOperand at(int bytes) const { return {low + (bytes >> 4), high}; }
  __device__ __forceinline__ uint64_t descriptor() const { return static_cast<uint64_t>(high) << 32 | low; }
};
__device__ __forceinline__ MatrixOperand matrix_operand(const void* first, int k_bytes, int row_bytes) {
  // In units of 16 bytes: where it starts and the leading (k) offset; the stride (rows). The top bits: no swizzle.
  return {(shared_address(first) & 0x3ffff) >> 4 | static_cast<uint32_t>(k_bytes >> 4) << 16,
          static_cast<uint32_t>(row_bytes >> 4)};
}

// Keep the compiler from moving what it does with registers across.
template <int N>
__device__ __forceinline__ void pin(float (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(sums[i])::"memory");
}
template <int N>
__device__ __forceinline__ void pin(uint32_t (&operands)[N][4]) {
#pragma unroll
  for (int i = 0; i < 4 * N; i++) asm volatile("" : "+r"(operands[i / 4][i % 4])::"memory");
}

template <class... Registers>
__device__ __forceinline__ void wgmma_fence(Registers&... registers) {
  (pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
  (pin(registers), ...);
}

#define CIPS3D_SUMS_8(i)                                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define CIPS3D_SUMS_32(i) CIPS3D_SUMS_8(i), CIPS3D_SUMS_8(i + 8), CIPS3D_SUMS_8(i + 16), CIPS3D_SUMS_8(i + 24)
// Both operands in shared memory. Behind them: add to d, and take neither operand's negative nor transpose.
#define CIPS3D_WGMMA_256(type)                                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                         \
               " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                           \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                   \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                   \
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"                   \
               "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                   \
               "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                   \
               "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"       \
               "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, " \
               "%128, %129, 1, 1, 1, 0, 0;"                                                         \
               : CIPS3D_SUMS_32(0), CIPS3D_SUMS_32(32), CIPS3D_SUMS_32(64), CIPS3D_SUMS_32(96)      \
               : "l"(a.descriptor()), "l"(b.descriptor())                                           \
               : "memory")
__device__ __forceinline__ void wgmma_m64n256k16_f16(float (&d)[128], MatrixOperand a, MatrixOperand b) {
  CIPS3D_WGMMA_256("f16");
}
__device__ __forceinline__ void wgmma_m64n256k16_bf16(float (&d)[128], MatrixOperand a, MatrixOperand b) {
  CIPS3D_WGMMA_256("bf16");
}
#undef CIPS3D_WGMMA_256
// The operand A of four registers; without kAdds the sums begin with this product.
template <bool kAdds>
__device__ __forceinline__ void wgmma_m64n64k16_f16(float (&d)[32], const uint32_t (&a)[4], MatrixOperand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, %37, 1, 1, 0;"
      : CIPS3D_SUMS_32(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()), "n"(kAdds)
      : "memory");
}
template <bool kAdds>
__device__ __forceinline__ void wgmma_m64n128k16_f16(float (&d)[64], const uint32_t (&a)[4], MatrixOperand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "{%64,%65,%66,%67}, %68, %69, 1, 1, 0;"
      : CIPS3D_SUMS_32(0), CIPS3D_SUMS_32(32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()), "n"(kAdds)
      : "memory");
}
// Both operands in shared memory.
template <bool kAdds>
__device__ __forceinline__ void wgmma_m64n128k16_f16(float (&d)[64], MatrixOperand a, MatrixOperand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "%64, %65, %66, 1, 1, 0, 0;"
      : CIPS3D_SUMS_32(0), CIPS3D_SUMS_32(32)
      : "l"(a.descriptor()), "l"(b.descriptor()), "n"(kAdds)
      : "memory");
}
// The second one perhaps transposed.
template <bool kAdds, bool kTransposed>
__device__ __forceinline__ void wgmma_m64n64k16_f16(float (&d)[32], MatrixOperand a, MatrixOperand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "%32, %33, %34, 1, 1, 0, %35;"
      : CIPS3D_SUMS_32(0)
      : "l"(a.descriptor()), "l"(b.descriptor()), "n"(kAdds), "n"(kTransposed)
      : "memory");
}
// Both operands transposed.
__device__ __forceinline__ void wgmma_m64n128k16_f16_transposed(float (&d)[64], MatrixOperand a, MatrixOperand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "%64, %65, 1, 1, 1, 1, 1;"
      : CIPS3D_SUMS_32(0), CIPS3D_SUMS_32(32)
      : "l"(a.descriptor()), "l"(b.descriptor())
      : "memory");
}
__device__ __forceinline__ void wgmma_m64n64k16_f16_transposed(float (&d)[32], MatrixOperand a, MatrixOperand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "%32, %33, 1, 1, 1, 1, 1;"
      : CIPS3D_SUMS_32(0)
      : "l"(a.descriptor()), "l"(b.descriptor())
      : "memory");
}
__device__ __forceinline__ void wgmma_m64n8k16_f16_transposed(float (&d)[4], MatrixOperand a, MatrixOperand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "
      "{%0,%1,%2,%3}, "
      "%4, %5, 1, 1, 1, 1, 1;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(a.descriptor()), "l"(b.descriptor())
      : "memory");
}
#undef CIPS3D_SUMS_32
#undef CIPS3D_SUMS_8

// A barrier of the threads of a warpgroup, of whom a block has at most 15.
__device__ __forceinline__ void warpgroup_sync() {
  asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory");
}
// What the thread has written to shared memory is there for wgmma and copies that others start behind a barrier.
__device__ __forceinline__ void fence_for_async_reads() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier in shared memory: a phase ends when as many have arrived as it was initialised for, and with them all bytes
// that they expect. Phases are known by their parity, the first is 0.
__device__ __forceinline__ void phase_barrier_init(uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// By the thread that has initialised barriers, in front of the barrier that lets others use them.
__device__ __forceinline__ void phase_barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  fence_for_async_reads();
}
// Arrives, and has the phase wait for that many bytes more.
__device__ __forceinline__ void phase_barrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Until the phase of that parity, this one or the one before, has ended.
__device__ __forceinline__ void phase_barrier_wait(uint64_t* barrier, unsigned parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{\n.reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.b32 %0, 1, 0, ended;\n}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (ended == 0);
  __syncwarp();
}

// Starts a copy, both addresses aligned to 16 bytes, that reports its bytes to the barrier.
template <int kBytes>
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint64_t* barrier) {
  static_assert(kBytes % 16 == 0, "");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(kBytes), "r"(shared_address(barrier))
               : "memory");
}

// How often a counter in shared memory has been arrived at before. It orders nothing that threads read or write: with
// that, each arrival would wait for all that the thread has on its way, at a cluster's counter for the whole device's
// memory, and give up its first cache. What matrix instructions have read is read when they are waited for.
__device__ __forceinline__ unsigned arrive_at_counter(unsigned* counter) {
  unsigned before;
  asm volatile("atom.relaxed.cta.shared::cta.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "r"(shared_address(counter))
               : "memory");
  return before;
}

// Clusters: blocks that run at the same time and reach each other's shared memory, in which all have the same arrays.
// A launch without has clusters of one block.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned blocks;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}
// A barrier of all threads of a cluster. No block may end before others are done with its shared memory.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// As arrive_at_counter, at the first block's counter.
__device__ __forceinline__ unsigned arrive_at_cluster_counter(unsigned* counter) {
  unsigned before;
  asm volatile(
      "{\n.reg .b32 first;\n"
      "mapa.shared::cluster.u32 first, %1, 0;\n"
      "atom.relaxed.cluster.shared::cluster.add.u32 %0, [first], 1;\n}"
      : "=r"(before)
      : "r"(shared_address(counter))
      : "memory");
  return before;
}
// Starts a copy into the same place of all blocks, which reports to the barrier of each.
template <int kBytes>
__device__ __forceinline__ void copy_bulk_to_cluster(void* shared, const void* global, uint64_t* barrier) {
  static_assert(kBytes % 16 == 0, "");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(kBytes), "r"(shared_address(barrier)), "h"(static_cast<uint16_t>((1u << cluster_size()) - 1))
      : "memory");
}

}  // namespace cips3d
#endif

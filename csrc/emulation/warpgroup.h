// What compute capability 9.0 alone has; csrc/warpgroup.h has its PTX.
#pragma once
#include <cstdint>

#include "engine.h"
#include "types.h"

namespace cips3d::emulation {

// An operand of wgmma: core matrices of 8 rows of 16 bytes, one row after the other.
struct MatrixOperand {
  const char* first;       // core matrix
  int k_bytes, row_bytes;  // from one to the next 8 columns, and to the next 8 rows
};

constexpr int kProductSums = 128;  // of a thread: its part of [64, 256]

// Until the wait the sums hold NaN. Operands are read at once or at the wait, as the schedule has it.
void start_product(float* sums, MatrixOperand a, MatrixOperand b, Site site);
void fence_products();
void fence_for_asynchronous_reads();
void commit_products(Site site);
void wait_for_products(int groups_left, float* sums, Site site);
// Product i of those that such a wait will end, or null.
struct StartedProduct {
  MatrixOperand a, b;
};
const StartedProduct* ending_product(int groups_left, unsigned i);

void warpgroup_barrier(Site site);

void init_phase_barrier(void* barrier, unsigned arrivals, Site site);
void expect_bytes(void* barrier, int bytes, Site site);
// Of bytes that the caller has read; they arrive when somebody waits for them.
void copy_bulk_later(void* destination, const void* bytes, int count, void* barrier, Site site);
void wait_for_phase(void* barrier, unsigned parity, Site site);

// Reads a thread's share of the operands, here in the header, so that sanitizers see it: who reads what other threads
// have written, or will overwrite, has to be ordered after or before them.
inline void touch_operand(const MatrixOperand& of, int row_groups, Site site) {
  const int rows = 2 * 8 * row_groups;
  for (int i = static_cast<int>(threadIdx.x % 128); i < rows; i += 128) {
    const char* row = of.first + i / 8 / row_groups * of.k_bytes + i / 8 % row_groups * of.row_bytes + i % 8 * 16;
    check_shared(row, 16, "wgmma_m64n256k16", site);
    for (int k = 0; k < 2; k++) (void)reinterpret_cast<const volatile uint64_t*>(row)[k];
  }
}

}  // namespace cips3d::emulation

namespace cips3d {

using MatrixOperand = emulation::MatrixOperand;

inline MatrixOperand matrix_operand(const void* first, int k_bytes, int row_bytes) {
  return {static_cast<const char*>(first), k_bytes, row_bytes};
}

inline void wgmma_fence(float (&)[emulation::kProductSums]) { emulation::fence_products(); }
inline void wgmma_m64n256k16_f16(float (&sums)[emulation::kProductSums], MatrixOperand a, MatrixOperand b,
                                 emulation::Site site = emulation::Site::here()) {
  emulation::touch_operand(a, 8, site), emulation::touch_operand(b, 32, site);
  emulation::start_product(sums, a, b, site);
}
inline void wgmma_commit(emulation::Site site = emulation::Site::here()) { emulation::commit_products(site); }
template <int N>
void wgmma_wait(float (&sums)[emulation::kProductSums], emulation::Site site = emulation::Site::here()) {
  for (unsigned i = 0; const emulation::StartedProduct* ending = emulation::ending_product(N, i); i++)
    emulation::touch_operand(ending->a, 8, site), emulation::touch_operand(ending->b, 32, site);
  emulation::wait_for_products(N, sums, site);
}

inline void warpgroup_sync(emulation::Site site = emulation::Site::here()) { emulation::warpgroup_barrier(site); }
inline void fence_for_async_reads() { emulation::fence_for_asynchronous_reads(); }

inline void phase_barrier_init(uint64_t* barrier, unsigned arrivals, emulation::Site site = emulation::Site::here()) {
  emulation::check_shared(barrier, 8, "phase_barrier_init", site, 8);
  *barrier = 0;
  emulation::init_phase_barrier(barrier, arrivals, site);
}
inline void phase_barrier_init_fence() {}
inline void phase_barrier_expect(uint64_t* barrier, int bytes, emulation::Site site = emulation::Site::here()) {
  emulation::expect_bytes(barrier, bytes, site);
}
inline void phase_barrier_wait(uint64_t* barrier, unsigned parity, emulation::Site site = emulation::Site::here()) {
  emulation::wait_for_phase(barrier, parity, site);
}

// Until it has arrived the destination holds NaN.
template <int kBytes>
void copy_bulk(void* shared, const void* global, uint64_t* barrier, emulation::Site site = emulation::Site::here()) {
  static_assert(kBytes % 16 == 0, "");
  emulation::check_shared(shared, kBytes, "copy_bulk", site);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    emulation::fail("copy_bulk: global address not aligned to 16 bytes", site);
  // Plain loads and stores, here in the header: seen by the sanitizers as accesses of the kernel.
  static_assert(kBytes <= 32 << 10, "it lies on the thread's stack");
  uint64_t words[kBytes / 8];
  for (int i = 0; i < kBytes / 8; i++) words[i] = static_cast<const uint64_t*>(global)[i];
  for (int i = 0; i < kBytes / 8; i++) static_cast<uint64_t*>(shared)[i] = ~uint64_t{0};
  emulation::copy_bulk_later(shared, words, kBytes, barrier, site);
}

inline unsigned arrive_at_counter(unsigned* counter) { return __atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL); }

}  // namespace cips3d

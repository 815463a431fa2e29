// What compute capability 9.0 alone has; csrc/warpgroup.h has its PTX.
#pragma once
#include <cstdint>

#include "engine.h"
#include "tensor_core.h"
#include "types.h"

namespace cips3d::emulation {

// An operand of wgmma: core matrices of 8 rows of 16 bytes, one row after the other.
struct MatrixOperand {
  const char* first;       // core matrix
  int k_bytes, row_bytes;  // from one to the next 8 columns, and to the next 8 rows

  MatrixOperand at(int bytes) const { return {first + bytes, k_bytes, row_bytes}; }
};

constexpr int kMostSums = 128;  // of a thread: its part of [64, 256]

// A product of 64 rows: the first operand in shared memory, or a lane's part of it in its registers.
struct StartedProduct {
  MatrixOperand a;
  const uint32_t* a_registers;  // [4], or null
  MatrixOperand b;
  int columns;
  bool adds;                        // to what the sums are
  bool a_transposed, b_transposed;  // core matrices have elements of the sum as rows
  Element element = Element::kHalf;
};

// Until the wait the sums hold NaN. Operands are read at once or at the wait, as the schedule has it.
void start_product(const char* name, float* sums, const StartedProduct& product, Site site);
void fence_products();
void fence_for_asynchronous_reads();
void commit_products(Site site);
// Gives the thread back these arrays of sums.
void wait_for_products(int groups_left, float* const* sums, int arrays, Site site);
// Product i of those that such a wait will end, or null.
const StartedProduct* ending_product(int groups_left, unsigned i);

void warpgroup_barrier(Site site);

unsigned cluster_rank();
unsigned cluster_size();
void cluster_barrier(Site site);
// Where the block of that rank has what lies at p in the running thread's dynamic shared memory.
void* mapped(const void* p, unsigned rank, Site site);

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
    check_shared(row, 16, "wgmma", site);
    for (int k = 0; k < 2; k++) (void)reinterpret_cast<const volatile uint64_t*>(row)[k];
  }
}
inline void touch_operands(const StartedProduct& of, Site site) {
  if (of.a_registers == nullptr) touch_operand(of.a, 8, site);
  touch_operand(of.b, of.columns / 8, site);
}

// The sums among registers.
inline float* sums_of(float* sums) { return sums; }
template <int N>
float* sums_of(uint32_t (&)[N][4]) {
  return nullptr;
}

template <int N, class... Registers>
void end_products(Site site, Registers&... registers) {
  for (unsigned i = 0; const StartedProduct* ending = ending_product(N, i); i++) touch_operands(*ending, site);
  float* const sums[] = {sums_of(registers)...};
  wait_for_products(N, sums, sizeof...(registers), site);
}

}  // namespace cips3d::emulation

namespace cips3d {

using MatrixOperand = emulation::MatrixOperand;

inline MatrixOperand matrix_operand(const void* first, int k_bytes, int row_bytes) {
  return {static_cast<const char*>(first), k_bytes, row_bytes};
}

template <class... Registers>
void wgmma_fence(Registers&...) {
  emulation::fence_products();
}
inline void wgmma_m64n256k16(emulation::Element element, float (&sums)[128], MatrixOperand a, MatrixOperand b,
                             emulation::Site site) {
  const emulation::StartedProduct product = {a, nullptr, b, 256, true, false, false, element};
  emulation::touch_operands(product, site);
  emulation::start_product("wgmma_m64n256k16", sums, product, site);
}
inline void wgmma_m64n256k16_f16(float (&sums)[128], MatrixOperand a, MatrixOperand b,
                                 emulation::Site site = emulation::Site::here()) {
  wgmma_m64n256k16(emulation::Element::kHalf, sums, a, b, site);
}
inline void wgmma_m64n256k16_bf16(float (&sums)[128], MatrixOperand a, MatrixOperand b,
                                  emulation::Site site = emulation::Site::here()) {
  wgmma_m64n256k16(emulation::Element::kBFloat16, sums, a, b, site);
}
template <bool kAdds>
void wgmma_m64n64k16_f16(float (&sums)[32], const uint32_t (&a)[4], MatrixOperand b,
                         emulation::Site site = emulation::Site::here()) {
  const emulation::StartedProduct product = {{}, a, b, 64, kAdds, false, false};
  emulation::touch_operands(product, site);
  emulation::start_product("wgmma_m64n64k16", sums, product, site);
}
template <bool kAdds>
void wgmma_m64n128k16_f16(float (&sums)[64], const uint32_t (&a)[4], MatrixOperand b,
                          emulation::Site site = emulation::Site::here()) {
  const emulation::StartedProduct product = {{}, a, b, 128, kAdds, false, false};
  emulation::touch_operands(product, site);
  emulation::start_product("wgmma_m64n128k16", sums, product, site);
}
template <bool kAdds>
void wgmma_m64n128k16_f16(float (&sums)[64], MatrixOperand a, MatrixOperand b,
                          emulation::Site site = emulation::Site::here()) {
  const emulation::StartedProduct product = {a, nullptr, b, 128, kAdds, false, false};
  emulation::touch_operands(product, site);
  emulation::start_product("wgmma_m64n128k16", sums, product, site);
}
template <bool kAdds, bool kTransposed>
void wgmma_m64n64k16_f16(float (&sums)[32], MatrixOperand a, MatrixOperand b,
                         emulation::Site site = emulation::Site::here()) {
  const emulation::StartedProduct product = {a, nullptr, b, 64, kAdds, false, kTransposed};
  emulation::touch_operands(product, site);
  emulation::start_product("wgmma_m64n64k16", sums, product, site);
}
template <int kSums>
void wgmma_transposed(const char* name, float (&sums)[kSums], MatrixOperand a, MatrixOperand b, emulation::Site site) {
  const emulation::StartedProduct product = {a, nullptr, b, 2 * kSums, true, true, true};
  emulation::touch_operands(product, site);
  emulation::start_product(name, sums, product, site);
}
inline void wgmma_m64n128k16_f16_transposed(float (&sums)[64], MatrixOperand a, MatrixOperand b,
                                            emulation::Site site = emulation::Site::here()) {
  wgmma_transposed("wgmma_m64n128k16", sums, a, b, site);
}
inline void wgmma_m64n64k16_f16_transposed(float (&sums)[32], MatrixOperand a, MatrixOperand b,
                                           emulation::Site site = emulation::Site::here()) {
  wgmma_transposed("wgmma_m64n64k16", sums, a, b, site);
}
inline void wgmma_m64n8k16_f16_transposed(float (&sums)[4], MatrixOperand a, MatrixOperand b,
                                          emulation::Site site = emulation::Site::here()) {
  wgmma_transposed("wgmma_m64n8k16", sums, a, b, site);
}
inline void wgmma_commit(emulation::Site site = emulation::Site::here()) { emulation::commit_products(site); }
template <int N, class A>
void wgmma_wait(A& a, emulation::Site site = emulation::Site::here()) {
  emulation::end_products<N>(site, a);
}
template <int N, class A, class B>
void wgmma_wait(A& a, B& b, emulation::Site site = emulation::Site::here()) {
  emulation::end_products<N>(site, a, b);
}
template <int N, class A, class B, class C>
void wgmma_wait(A& a, B& b, C& c, emulation::Site site = emulation::Site::here()) {
  emulation::end_products<N>(site, a, b, c);
}
template <int N, class A, class B, class C, class D>
void wgmma_wait(A& a, B& b, C& c, D& d, emulation::Site site = emulation::Site::here()) {
  emulation::end_products<N>(site, a, b, c, d);
}
template <int N, class A, class B, class C, class D, class E, class F>
void wgmma_wait(A& a, B& b, C& c, D& d, E& e, F& f, emulation::Site site = emulation::Site::here()) {
  emulation::end_products<N>(site, a, b, c, d, e, f);
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

inline unsigned cluster_rank() { return emulation::cluster_rank(); }
inline unsigned cluster_size() { return emulation::cluster_size(); }
inline void cluster_sync(emulation::Site site = emulation::Site::here()) { emulation::cluster_barrier(site); }
inline unsigned arrive_at_cluster_counter(unsigned* counter, emulation::Site site = emulation::Site::here()) {
  return arrive_at_counter(static_cast<unsigned*>(emulation::mapped(counter, 0, site)));
}
template <int kBytes>
void copy_bulk_to_cluster(void* shared, const void* global, uint64_t* barrier,
                          emulation::Site site = emulation::Site::here()) {
  for (unsigned rank = 0; rank < cluster_size(); rank++)
    copy_bulk<kBytes>(emulation::mapped(shared, rank, site), global,
                      static_cast<uint64_t*>(emulation::mapped(barrier, rank, site)), site);
}

}  // namespace cips3d

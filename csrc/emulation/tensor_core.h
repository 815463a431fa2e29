// Matrix instructions and asynchronous copies; csrc/tensor_core.h has their PTX.
#pragma once
#include <cstdint>
#include <cstring>

#include "engine.h"

namespace cips3d::emulation {

enum class Element { kHalf, kBFloat16 };
void mma_m16n8k16(Element element, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site);

// d[m][n] += Σ_k a[m][k] b[n][k]; a and b hold pairs of k.
void multiply_elements(Element element, const uint32_t (&a)[16][8], const uint32_t (&b)[8][8], float (&d)[16][8]);

// Where the elements that ldmatrix gives this lane lie: sources[2 * m + h] for half h of register m.
void exchange_rows(const Operation& operation, const void* row, int matrices, bool transposed, const uint16_t** sources,
                   Site site);

// The lane loads its elements itself, here in the header, so that sanitizers see the access and its place.
template <int kMatrices, bool kTransposed>
void ldmatrix(const Operation& operation, uint32_t (&registers)[kMatrices], const void* row, Site site) {
  const uint16_t* sources[2 * kMatrices];
  exchange_rows(operation, row, kMatrices, kTransposed, sources, site);
  for (int m = 0; m < kMatrices; m++) registers[m] = *sources[2 * m] | static_cast<uint32_t>(*sources[2 * m + 1]) << 16;
}

}  // namespace cips3d::emulation

namespace cips3d {

inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                             emulation::Site site = emulation::Site::here()) {
  emulation::mma_m16n8k16(emulation::Element::kHalf, d, a, b, c, site);
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                              emulation::Site site = emulation::Site::here()) {
  emulation::mma_m16n8k16(emulation::Element::kBFloat16, d, a, b, c, site);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, emulation::Site site = emulation::Site::here()) {
  static constexpr emulation::Operation kOperation{"ldmatrix_x4", true, false};
  emulation::ldmatrix<4, false>(kOperation, r, row, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, emulation::Site site = emulation::Site::here()) {
  static constexpr emulation::Operation kOperation{"ldmatrix_x4_trans", true, false};
  emulation::ldmatrix<4, true>(kOperation, r, row, site);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, emulation::Site site = emulation::Site::here()) {
  static constexpr emulation::Operation kOperation{"ldmatrix_x2", true, false};
  emulation::ldmatrix<2, false>(kOperation, r, row, site);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, emulation::Site site = emulation::Site::here()) {
  static constexpr emulation::Operation kOperation{"ldmatrix_x2_trans", true, false};
  emulation::ldmatrix<2, true>(kOperation, r, row, site);
}

// Until the wait the destination holds NaN.
inline void cp_async_16(void* shared, const void* global, int source_bytes = 16,
                        emulation::Site site = emulation::Site::here()) {
  emulation::check_shared(shared, 16, "cp_async_16", site);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    emulation::fail("cp_async_16: global address not aligned to 16 bytes", site);
  if (source_bytes < 0 || source_bytes > 16) emulation::fail("cp_async_16: source bytes not in 0 to 16", site);
  // Plain loads and stores, here in the header: seen by the sanitizers as accesses of the kernel.
  unsigned char bytes[16] = {};
  for (int i = 0; i < source_bytes; i++) bytes[i] = static_cast<const unsigned char*>(global)[i];
  for (int i = 0; i < 2; i++) static_cast<uint64_t*>(shared)[i] = ~uint64_t{0};
  emulation::copy_later(shared, bytes);
}
inline void cp_async_commit() { emulation::commit_copies(); }
template <int N>
void cp_async_wait() {
  emulation::wait_for_copies(N);
}

}  // namespace cips3d

// Barriers, warp-wide functions and atomics.
#pragma once
#include <cstdint>
#include <cstring>

#include "engine.h"

namespace cips3d::emulation {

// The value (of at most 8 bytes) that lane `source` brings.
uint64_t shuffle(const Operation& operation, uint32_t mask, uint64_t value, int source, Site site);
// Bit i: the predicate of lane i.
uint32_t ballot(const Operation& operation, uint32_t mask, bool predicate, Site site);
// The lanes' values put together in index order.
uint32_t reduce(const Operation& operation, uint32_t mask, uint32_t value, uint32_t (*combine)(uint32_t, uint32_t),
                Site site);

template <class T>
T shuffle_value(const Operation& operation, uint32_t mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(operation, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int segment_start(int lane, int width) { return lane & ~(width - 1); }

}  // namespace cips3d::emulation

inline void __syncthreads(cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  cips3d::emulation::barrier("__syncthreads", cips3d::emulation::Vote::kNone, false, site);
}
inline int __syncthreads_count(int predicate, cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  return cips3d::emulation::barrier("__syncthreads_count", cips3d::emulation::Vote::kCount, predicate != 0, site);
}
inline int __syncthreads_and(int predicate, cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  return cips3d::emulation::barrier("__syncthreads_and", cips3d::emulation::Vote::kAnd, predicate != 0, site);
}
inline int __syncthreads_or(int predicate, cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  return cips3d::emulation::barrier("__syncthreads_or", cips3d::emulation::Vote::kOr, predicate != 0, site);
}
inline void __syncwarp(unsigned mask = ~0u, cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  static constexpr cips3d::emulation::Operation kOperation{"__syncwarp", false, true};
  cips3d::emulation::collective(kOperation, mask, nullptr, [](void**, uint32_t) {}, site);
}
inline void __threadfence() { cips3d::emulation::fence(); }
[[noreturn]] inline void __trap(cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  cips3d::emulation::fail("__trap", site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  using namespace cips3d::emulation;
  static constexpr Operation kOperation{"__shfl_sync", false, false};
  const int lane = static_cast<int>(lane_index());
  return shuffle_value(kOperation, mask, value, segment_start(lane, width) | (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  using namespace cips3d::emulation;
  static constexpr Operation kOperation{"__shfl_xor_sync", false, false};
  const int lane = static_cast<int>(lane_index()), source = lane ^ lane_mask;
  return shuffle_value(kOperation, mask, value, source < segment_start(lane, width) + width ? source : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  using namespace cips3d::emulation;
  static constexpr Operation kOperation{"__shfl_up_sync", false, false};
  const int lane = static_cast<int>(lane_index()), source = lane - static_cast<int>(delta);
  return shuffle_value(kOperation, mask, value, source >= segment_start(lane, width) ? source : lane, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  using namespace cips3d::emulation;
  static constexpr Operation kOperation{"__shfl_down_sync", false, false};
  const int lane = static_cast<int>(lane_index()), source = lane + static_cast<int>(delta);
  return shuffle_value(kOperation, mask, value, source < segment_start(lane, width) + width ? source : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  static constexpr cips3d::emulation::Operation kOperation{"__ballot_sync", false, false};
  return cips3d::emulation::ballot(kOperation, mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  static constexpr cips3d::emulation::Operation kOperation{"__any_sync", false, false};
  return cips3d::emulation::ballot(kOperation, mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, cips3d::emulation::Site site = cips3d::emulation::Site::here()) {
  static constexpr cips3d::emulation::Operation kOperation{"__all_sync", false, false};
  return cips3d::emulation::ballot(kOperation, mask, predicate == 0, site) == 0;
}

#define CIPS3D_EMULATE_REDUCE(T, name, expression)                                                        \
  inline T name(unsigned mask, T value, cips3d::emulation::Site site = cips3d::emulation::Site::here()) { \
    static constexpr cips3d::emulation::Operation kOperation{#name, false, false};                        \
    return static_cast<T>(cips3d::emulation::reduce(                                                      \
        kOperation, mask, static_cast<uint32_t>(value),                                                   \
        [](uint32_t x, uint32_t y) {                                                                      \
          const T a = static_cast<T>(x), b = static_cast<T>(y);                                           \
          return static_cast<uint32_t>(expression);                                                       \
        },                                                                                                \
        site));                                                                                           \
  }
CIPS3D_EMULATE_REDUCE(unsigned, __reduce_add_sync, a + b)
CIPS3D_EMULATE_REDUCE(unsigned, __reduce_min_sync, b < a ? b : a)
CIPS3D_EMULATE_REDUCE(unsigned, __reduce_max_sync, a < b ? b : a)
CIPS3D_EMULATE_REDUCE(int, __reduce_add_sync, static_cast<uint32_t>(a) + static_cast<uint32_t>(b))
CIPS3D_EMULATE_REDUCE(int, __reduce_min_sync, b < a ? b : a)
CIPS3D_EMULATE_REDUCE(int, __reduce_max_sync, a < b ? b : a)
CIPS3D_EMULATE_REDUCE(unsigned, __reduce_xor_sync, a ^ b)
#undef CIPS3D_EMULATE_REDUCE

namespace cips3d::emulation {

// Relaxed, as on the device: nothing else is ordered by it.
template <class T, class F>
T atomic_update(T* p, F f) {
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do after = f(before);
  while (!__atomic_compare_exchange(p, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

template <class T>
struct Exactly {  // keeps an argument from taking part in the deduction of T
  using Type = T;
};

}  // namespace cips3d::emulation

#define CIPS3D_EMULATE_ATOMIC(name, expression)                                                       \
  template <class T>                                                                                  \
  T name(T* p, typename cips3d::emulation::Exactly<T>::Type value) {                                  \
    return cips3d::emulation::atomic_update(p, [=](T before) { return static_cast<T>(expression); }); \
  }
CIPS3D_EMULATE_ATOMIC(atomicAdd, before + value)
CIPS3D_EMULATE_ATOMIC(atomicSub, before - value)
CIPS3D_EMULATE_ATOMIC(atomicMax, before < value ? value : before)
CIPS3D_EMULATE_ATOMIC(atomicMin, value < before ? value : before)
CIPS3D_EMULATE_ATOMIC(atomicAnd, before& value)
CIPS3D_EMULATE_ATOMIC(atomicOr, before | value)
CIPS3D_EMULATE_ATOMIC(atomicXor, before ^ value)
CIPS3D_EMULATE_ATOMIC(atomicExch, ((void)before, value))
#undef CIPS3D_EMULATE_ATOMIC
template <class T>
T atomicCAS(T* p, typename cips3d::emulation::Exactly<T>::Type compare,
            typename cips3d::emulation::Exactly<T>::Type value) {
  return cips3d::emulation::atomic_update(p, [=](T before) { return before == compare ? value : before; });
}

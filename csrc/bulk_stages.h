// What streams through stages of shared memory in bulk copies, for compute capability 9.0: weights that all warps of a
// block read.
//
// Nobody waits for a stage to be free. The last of the warps that are done with one starts the next copy over it; a
// warp of its own for that would cost the registers of its threads.
#pragma once
#include "warpgroup.h"

namespace cips3d {

template <int kStages, int kHalves, int kWarps>
struct BulkStages {
  static constexpr size_t kBytes =
      shared_bytes<half>(kStages * kHalves) + shared_bytes<uint64_t>(kStages) + shared_bytes<unsigned>(kStages);

  half* stages;       // [kStages, kHalves]
  uint64_t* filled;   // [kStages] whose phases end when a stage is there
  unsigned* emptied;  // [kStages] how many warps are done with a stage, of all times it was filled
  int next, count;    // which slab comes next, and which one behind the last, from `first` on
  int first;

  __device__ __forceinline__ explicit BulkStages(SharedArrays& shared)
      : stages(shared.take<half>(kStages * kHalves)),
        filled(shared.take<uint64_t>(kStages)),
        emptied(shared.take<unsigned>(kStages)),
        next(0),
        count(0),
        first(0) {}

  // By all threads, in front of a barrier of the block.
  __device__ __forceinline__ void init() const {
    if (threadIdx.x > 0) return;
    for (int stage = 0; stage < kStages; stage++) phase_barrier_init(filled + stage, 1), emptied[stage] = 0;
    phase_barrier_init_fence();
  }
  // By all threads, once all warps have left the last slab and met at a barrier. copy(i, to, barrier) has the barrier
  // expect slab i, kHalves at most, and starts to copy it.
  template <class Copy>
  __device__ __forceinline__ void begin(int slabs, const Copy& copy) {
    first = next % (2 * kStages);  // the same stage, and the same parity of its phase
    next = first, count = first + slabs;
    if (threadIdx.x == 0)
      for (int i = first; i < min(first + kStages, count); i++) fetch(i, copy);
  }

  // The next slab, once it is there.
  __device__ __forceinline__ const half* wait() const {
    const int stage = next % kStages;
    phase_barrier_wait(filled + stage, next / kStages % 2);
    return stages + stage * kHalves;
  }

  // The warp has read slab i.
  template <class Copy>
  __device__ __forceinline__ void leave(int i, const Copy& copy) const {
    __syncwarp();
    if (threadIdx.x % 32 > 0) return;
    const unsigned before = arrive_at_counter(emptied + i % kStages);
    if (before % kWarps == kWarps - 1 && i + kStages < count) fetch(i + kStages, copy);
  }

 private:
  template <class Copy>
  __device__ __forceinline__ void fetch(int i, const Copy& copy) const {
    const int stage = i % kStages;
    copy(i - first, stages + stage * kHalves, filled + stage);
  }
};

}  // namespace cips3d

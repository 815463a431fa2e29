// What streams through stages of shared memory in bulk copies, for compute capability 9.0: weights that all warps of a
// block read, or all blocks of a cluster.
//
// Nobody waits for a stage to be free. The last of the warps that are done with one starts the next copy over it; a
// warp of its own for that would cost the registers of its threads. Where blocks share what they read, the last warp of
// each block arrives at a counter of the first block, and the last of them starts one copy for all: L2 is read once.
#pragma once
#include "warpgroup.h"

namespace cips3d {

// A stage that is to be filled, as the thread sees it that its block's warps have left it to.
template <bool kByCluster>
struct StageToFill {
  half* to;
  uint64_t* filled;
  unsigned* arrived;  // blocks of the cluster, of all times

  // In kPieces copies, one behind the other; those of device memory begin `step` apart.
  template <int kBytes, int kPieces = 1>
  __device__ __forceinline__ void fill(const half* from, int64_t step = 0) const {
    phase_barrier_expect(filled, kPieces * kBytes);
    const unsigned blocks = kByCluster ? cluster_size() : 1;  // a power of two
    const bool shares = blocks > 1;
    if (shares && (arrive_at_cluster_counter(arrived) & (blocks - 1)) != blocks - 1) return;
#pragma unroll
    for (int i = 0; i < kPieces; i++) {
      half* piece = to + i * (kBytes / sizeof(half));
      if (shares)
        copy_bulk_to_cluster<kBytes>(piece, from + i * step, filled);
      else
        copy_bulk<kBytes>(piece, from + i * step, filled);
    }
  }
};

// kByCluster: all blocks of a cluster read the same, each of them as many stages.
template <int kStages, int kHalves, int kWarps, bool kByCluster = false>
struct BulkStages {
  static constexpr int kCounters = (kByCluster ? 2 : 1) * kStages;
  static constexpr size_t kBytes =
      shared_bytes<half>(kStages * kHalves) + shared_bytes<uint64_t>(kStages) + shared_bytes<unsigned>(kCounters);

  half* stages;       // [kStages, kHalves]
  uint64_t* filled;   // [kStages] whose phases end when a stage is there
  unsigned* emptied;  // [kStages] how many warps are done with a stage, of all times it was filled; and how many blocks
  int next, count;    // which slab comes next, and which one behind the last, from `first` on
  int first;

  __device__ __forceinline__ explicit BulkStages(SharedArrays& shared)
      : stages(shared.take<half>(kStages * kHalves)),
        filled(shared.take<uint64_t>(kStages)),
        emptied(shared.take<unsigned>(kCounters)),
        next(0),
        count(0),
        first(0) {}

  // By all threads, in front of a barrier of the block, or of the cluster.
  __device__ __forceinline__ void init() const {
    if (threadIdx.x > 0) return;
    for (int stage = 0; stage < kStages; stage++) phase_barrier_init(filled + stage, 1);
    for (int i = 0; i < kCounters; i++) emptied[i] = 0;
    phase_barrier_init_fence();
  }
  // By all threads, once all warps have left the last slab and met at a barrier. copy(i, stage) fills it with slab i.
  template <class Copy>
  __device__ __forceinline__ void begin(int slabs, const Copy& copy) {
    first = next % (2 * kStages);  // the same stage, and the same parity of its phase
    next = first, count = first + slabs;
    if (threadIdx.x > 0) return;
#pragma unroll 1
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
    copy(i - first,
         StageToFill<kByCluster>{stages + stage * kHalves, filled + stage, emptied + (kCounters - kStages) + stage});
  }
};

}  // namespace cips3d

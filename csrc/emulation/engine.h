// The emulated CUDA execution model: what launches and device functions call. The threads of a block are fibers of the
// calling thread; one runs until it waits, then another does. Blocks run one after the other, those of a cluster
// together.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "types.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cips3d::emulation {

// Where a kernel calls a device function: a default argument, so that it is the caller's place.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};
std::string describe(Site site);  // file:line

// A launch, of clusters of so many blocks that are neighbours in x. Throws std::runtime_error where the launch is
// invalid or a thread did what it must not.
void run_grid(dim3 grid, dim3 block, unsigned cluster, size_t shared, void (*body)(void*), void* context);
template <class Body>
void run_grid(dim3 grid, dim3 block, unsigned cluster, size_t shared, Body body) {
  run_grid(grid, block, cluster, shared, [](void* context) { (*static_cast<Body*>(context))(); }, &body);
}

// The order in which blocks, warps and lanes run where nothing orders them is drawn from `seed`; 0 is index order.
void set_schedule(uint64_t seed);
uint64_t schedule();

// The most dynamic shared memory of a block, in bytes; without a call, that of compute capability 9.0.
void set_shared_limit(size_t bytes);
size_t shared_limit();

// Array `index` of the block's dynamic shared memory.
void* shared_array(size_t bytes, unsigned index);

// Fails unless the bytes lie in one array of dynamic shared memory, or outside of it altogether (static arrays), and
// are aligned.
void check_shared(const void* p, size_t bytes, const char* operation, Site site, size_t alignment = 16);

// Ends the launch with an error that names the running thread.
[[noreturn]] void fail(const std::string& message);
[[noreturn]] void fail(const std::string& message, Site site);

enum class Vote { kNone, kCount, kAnd, kOr };
int barrier(const char* operation, Vote vote, bool predicate, Site site);

// __threadfence: for ThreadSanitizer, what a thread did before its fence comes before what others do after a later one.
void fence();

unsigned lane_index();

// An operation of the lanes in a mask together.
struct Operation {
  const char* name;
  bool all_lanes;  // all 32 lanes at one place of the source, as `.aligned` instructions need
  bool ordered;    // what lanes wrote before is visible to the others after it
};
// Waits until every lane of `mask` has come with its arguments; the last one runs compute(arguments by lane, mask).
void collective(const Operation& operation, uint32_t mask, void* arguments, void (*compute)(void**, uint32_t),
                Site site);

// cp.async: 16 bytes reach shared memory when the thread waits for their group.
void copy_later(void* destination, const void* bytes);
void commit_copies();
void wait_for_copies(int groups_left);

}  // namespace cips3d::emulation

// The blocks of a cluster, most often one: their threads as fibers, who runs next, and where they wait for each other.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "fiber.h"
#include "shared_memory.h"

namespace cips3d::emulation {

constexpr unsigned kMostThreads = 1024, kLanes = 32, kMostWarps = kMostThreads / kLanes;  // of all its blocks
constexpr unsigned kWarpgroupThreads = 128, kMostRanks = kMostThreads / kWarpgroupThreads;

struct Copy {
  void* destination;
  unsigned char bytes[16];
  int group;
};

struct Thread {
  uint3 position{};             // in its block
  unsigned index = 0;           // among those of all blocks, one block behind the other
  unsigned rank = 0;            // of its block
  Fiber* fiber = nullptr;       // null until it starts
  const char* waits = nullptr;  // in this operation
  Site site{};
  bool finished = false;
  int committed = 0;         // groups of copies
  std::vector<Copy> copies;  // not delivered
};

class Random {
 public:
  explicit Random(uint64_t seed = 0, uint64_t stream = 0);
  uint32_t draw() {  // xorshift
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 16);
  }
  uint32_t below(uint64_t n) { return static_cast<uint32_t>(draw() * n >> 32); }

 private:
  uint64_t state_;
};

class Cluster {
 public:
  // For blocks of `size` threads, `ranks` of them a cluster.
  void start_grid(dim3 size, unsigned ranks, size_t shared_bytes, void (*body)(void*), void* context);
  // Runs all threads of cluster `index` of the grid. The error, or an empty string.
  std::string run(uint64_t index, uint64_t seed);
  void end_grid();

  // What threads call.
  int barrier(const char* operation, Vote vote, bool predicate, Site site);
  void collective(const Operation& operation, uint32_t mask, void* arguments, void (*compute)(void**, uint32_t),
                  Site site);
  void fence();
  // Sleeps until somebody wakes those in the list.
  void wait_in(std::vector<unsigned>& list, const char* operation, Site site);
  void wake_listed(std::vector<unsigned>& list);
  [[noreturn]] void fail(const std::string& message);

  Thread* running() const { return running_; }  // null outside of a launch
  unsigned ranks() const { return ranks_; }
  unsigned block_threads() const { return count_; }
  // Of the running thread's block, or of another one.
  SharedMemory& shared() { return shared_[running_->rank]; }
  SharedMemory& shared(unsigned rank) { return shared_[rank]; }
  // Where block `rank` has what lies at p in the running thread's; it fails where it has nothing there, or has ended.
  void* mapped(const void* p, unsigned rank, Site site);
  // Whether work that goes on beside the threads reads memory at its end or at its start.
  bool reads_late() const { return reads_late_; }

 private:
  struct Gathering {  // of lanes, for a collective operation
    uint32_t mask = 0, arrived = 0;
    const Operation* operation = nullptr;
    Site site{};
    void* arguments[kLanes];
    unsigned turn = 0;
  };
  struct Barrier {  // of a block
    const char* operation = nullptr;
    Site site{};
    unsigned arrived = 0, votes = 0, turn = 0;
    int result = 0;
    unsigned returned = 0;  // threads, from the kernel
  };
  // Addresses for release and acquire. Barriers use two in turn, as a thread may be at the next one before another has
  // left; neighbouring clusters have their own. On the heap, out of the way of forget_static_variables.
  struct Order {
    char start, end, fence;
    struct {
      char barriers[kMostRanks][2], gatherings[kMostThreads][2];
    } clusters[2];
  };

  static void enter_fiber();
  void run_threads();
  void abandon();
  void wake(unsigned warp, uint32_t mask);
  void wake_block(unsigned rank);
  void switch_thread(Thread* next);
  Thread* next_ready();
  void yield();
  void switch_to(Thread* next);
  uint32_t lanes(unsigned warp) const;
  unsigned find_gathering(unsigned warp, uint32_t mask) const;
  std::string describe_deadlock() const;

  Thread main_;
  Fiber main_fiber_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;  // stacks that wait for a thread
  Thread threads_[kMostThreads];
  Thread* running_ = nullptr;
  unsigned ready_[kMostThreads];    // a stack: the last one runs first
  unsigned ranks_ = 1, count_ = 0;  // threads of a block
  unsigned ready_count_ = 0, finished_ = 0;
  uint3 first_block_{};  // of the cluster
  bool shuffle_ = false, depth_first_ = true, reads_late_ = false;
  Random random_;

  Gathering gatherings_[kMostThreads];  // [warp][place]
  Barrier barriers_[kMostRanks];
  std::unique_ptr<Order> order_ = std::make_unique<Order>();
  unsigned parity_ = 0;  // which half of order_->clusters, and under ThreadSanitizer of the fibers

  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  SharedMemory shared_[kMostRanks];
  std::string error_;
};

extern Cluster the_cluster;  // one at a time

// Forgets what the cluster has of warpgroup.h; says what it has not waited for, if all threads have finished.
std::string end_asynchronous_work(bool finished);

}  // namespace cips3d::emulation

// One block: its threads as fibers, who runs next, and where they wait for each other.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "fiber.h"
#include "shared_memory.h"

namespace cips3d::emulation {

constexpr unsigned kMostThreads = 1024, kLanes = 32, kMostWarps = kMostThreads / kLanes;

struct Copy {
  void* destination;
  unsigned char bytes[16];
  int group;
};

struct Thread {
  uint3 position{};
  unsigned index = 0;
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

class Block {
 public:
  void start_grid(dim3 size, size_t shared_bytes, void (*body)(void*), void* context);
  // Runs all threads of block `index` of the grid. The error, or an empty string.
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
  unsigned threads() const { return count_; }
  SharedMemory& shared() { return shared_; }
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
  // Addresses for release and acquire. Barriers use two in turn, as a thread may be at the next one before another has
  // left; neighbouring blocks have their own. On the heap, out of the way of forget_static_variables.
  struct Order {
    char start, end, fence;
    struct {
      char barrier[2], gatherings[kMostThreads][2];
    } blocks[2];
  };

  static void enter_fiber();
  void run_threads();
  void abandon();
  void wake(unsigned warp, uint32_t mask);
  void wake_all();
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
  unsigned ready_[kMostThreads];  // a stack: the last one runs first
  unsigned count_ = 0, ready_count_ = 0, finished_ = 0;
  bool shuffle_ = false, depth_first_ = true, reads_late_ = false;
  Random random_;

  Gathering gatherings_[kMostThreads];  // [warp][place]
  const char* barrier_operation_ = nullptr;
  Site barrier_site_{};
  unsigned arrived_ = 0, votes_ = 0, barrier_turn_ = 0;
  int vote_result_ = 0;
  std::unique_ptr<Order> order_ = std::make_unique<Order>();
  unsigned parity_ = 0;  // which half of order_->blocks, and under ThreadSanitizer of the fibers

  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  SharedMemory shared_;
  std::string error_;
};

extern Block the_block;  // one at a time

// Forgets what the block has of warpgroup.h; says what it has not waited for, if all threads have finished.
std::string end_asynchronous_work(bool finished);

}  // namespace cips3d::emulation

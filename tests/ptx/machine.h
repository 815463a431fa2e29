// Runs kernels of PTX on a CPU: the threads of a warp together as far as they agree, the warps of a block by turns of
// random length, the blocks one after the other but for those of a cluster.
#pragma once
#include <cstring>
#include <random>
#include <unordered_map>
#include <unordered_set>

#include "program.h"

namespace ptx {

struct Dim3 {
  unsigned x, y, z;
};

struct Launch {
  const Function& function;
  Dim3 grid, block;
  size_t dynamic_shared;
  const unsigned char* parameters;
  std::unordered_set<uint64_t> written;  // lines of 32 bytes of global memory
};

// mbarrier: how many are still to arrive, how many bytes still to come, and which phase it is.
struct PhaseBarrier {
  int64_t arrivals, pending, bytes;
  unsigned phase;
  bool unseen;  // a copy has come that nobody has waited for
};

// cp.async.bulk
struct BulkCopy {
  uint64_t shared, global, bytes, barrier;
};

constexpr uint64_t kSharedBase = 1024;  // what the system takes of every block's shared memory
constexpr int kRankShift = 24;          // addresses of other blocks' shared memory have their rank + 1 above

class Cluster;

class Block {
 public:
  Block(Launch& launch, Cluster& cluster, unsigned rank, Dim3 index);

  Launch& launch;
  Cluster& cluster;
  const unsigned rank;
  const Dim3 index;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<uint64_t> shared;  // of all kinds, from kSharedBase on
  size_t shared_bytes;
  std::unordered_map<uint64_t, PhaseBarrier> phase_barriers;
  std::vector<BulkCopy> bulk_copies;

  void complete(uint64_t barrier);  // a phase, if nothing is left to wait for
  unsigned char* shared_at(uint64_t address, size_t bytes);
  void deliver(size_t copy);
  size_t alive() const;  // warps
};

class Cluster {
 public:
  Cluster(Launch& launch, unsigned ranks, Dim3 first, std::mt19937& random);
  void run();

  const unsigned ranks;
  std::vector<std::unique_ptr<Block>> blocks;

 private:
  void open_barriers(std::vector<Warp*>& waiting, std::vector<Warp*>& ready);

  std::mt19937& random_;
};

// cp.async
struct LaneCopy {
  uint64_t shared;
  unsigned char bytes[16];
  int group;
};

// wgmma, from its start to its wait
struct GroupProduct {
  const Instruction* instruction;
  double (*value)(uint16_t);  // of an element
  int columns;
  bool a_in_registers, a_transposed, b_transposed;
  uint64_t a, b;  // matrix descriptors
  bool adds;
  int group;
};

class Warp {
 public:
  Warp(Block& block, const Function& function, int index, uint32_t lanes);

  enum class State { kReady, kAtBarrier, kFinished };
  // Runs so many instructions, or until it waits or ends.
  State run(int instructions);
  // All of a function that is called: nothing in it waits.
  void run_called();

  template <class T>
  T get(Operand operand, int lane) const {
    T value;
    std::memcpy(&value, &registers[static_cast<size_t>(operand.slot) * kLanes + lane], sizeof value);
    return value;
  }
  template <class T>
  void set(Operand operand, int lane, T value) {
    if (operand.slot < 0) return;
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    registers[static_cast<size_t>(operand.slot) * kLanes + lane] = bits;
  }
  uint64_t address(Operand operand, int lane, bool wide) const {
    return (wide ? get<uint64_t>(operand, lane) : get<uint32_t>(operand, lane)) + operand.offset;
  }
  [[noreturn]] void fail(const std::string& what) const;

  Block& block;
  const Function& function;
  const int index;
  uint32_t alive;  // lanes that have not returned
  std::vector<uint64_t> registers;
  std::vector<uint64_t> local;                // memory of each lane
  unsigned barrier = 0, barrier_threads = 0;  // at which it waits; 0 threads: all of the block
  std::vector<LaneCopy> copies[kLanes];
  int committed[kLanes] = {};
  std::vector<GroupProduct> products;
  int committed_products = 0;
  bool retries = false;  // what it asked for last had not come yet

 private:
  // The lanes that are furthest behind go on, but for those that wait for others; `except`: if there are no others.
  void select(uint32_t except = 0);
  bool join_or_wait(const Instruction& instruction, uint32_t lanes);

  int at_[kLanes] = {};
  int current_ = 0;  // place of the active lanes
  int join_ = 0;     // where the next of the others wait
  uint32_t active_ = 0;
  uint32_t waiting_ = 0;  // lanes at an instruction that others have to execute with them
  bool polls_ = false;    // the active lanes have asked for something that may need other lanes to come
};

extern bool counting;  // transfers of memory, which takes time

template <class F>
void for_lanes(uint32_t lanes, F f) {
  for (int lane = 0; lane < kLanes; lane++)
    if (lanes >> lane & 1) f(lane);
}

}  // namespace ptx

#include "engine.h"

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "fiber.h"
#include "sanitizers.h"
#include "shared_memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cips3d::emulation {
namespace {

constexpr unsigned kMostThreads = 1024, kLanes = 32, kMostWarps = kMostThreads / kLanes;
constexpr size_t kMostShared = 227 << 10;  // a block of compute capability 9.0

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

struct Gathering {  // of lanes, for a collective operation
  uint32_t mask = 0, arrived = 0;
  const Operation* operation = nullptr;
  Site site{};
  void* arguments[kLanes];
  char order[2];  // addresses for release and acquire, used in turn
  unsigned turn = 0;
};

std::string describe(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }
bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
bool same(Site a, Site b) { return a.line == b.line && same(a.file, b.file); }

class Random {
 public:
  explicit Random(uint64_t seed = 0, uint64_t stream = 0)
      : state_(((seed + 1) * 0x9E3779B97F4A7C15ull ^ (stream + 1) * 0xBF58476D1CE4E5B9ull) | 1) {
    for (int i = 0; i < 4; i++) draw();
  }
  uint32_t draw() {  // xorshift
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 16);
  }
  uint32_t below(uint64_t n) { return static_cast<uint32_t>(draw() * n >> 32); }

 private:
  uint64_t state_;
};

class Engine {
 public:
  void run(dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* context);
  void barrier(const char* operation, Vote vote, bool predicate, Site site);
  void collective(const Operation& operation, uint32_t mask, void* arguments, void (*compute)(void**, uint32_t),
                  Site site);
  [[noreturn]] void fail(const std::string& message);

  uint64_t seed = 0;
  Thread* current = nullptr;  // null outside of a launch
  SharedMemory shared;
  int vote_result = 0;

 private:
  static void entry();
  void live();  // what a fiber does: one thread after the other
  void start_grid(dim3 grid, dim3 block, size_t shared_bytes);
  void run_block(uint64_t block);
  void abandon_block();
  void wake(unsigned warp, uint32_t mask);
  void wake_all();
  Thread* next_ready();
  void yield();
  void switch_to(Thread* next);
  uint32_t lanes(unsigned warp) const;
  std::string describe_deadlock() const;

  Thread main_;
  Fiber main_fiber_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;  // stacks that wait for a thread
  Thread threads_[kMostThreads];
  Gathering gatherings_[kMostThreads];  // [warp][lowest lane of the mask]
  unsigned ready_[kMostThreads];        // a stack: the last one runs first
  unsigned ready_count_ = 0, count_ = 0, arrived_ = 0, finished_ = 0, votes_ = 0;
  const char* barrier_operation_ = nullptr;
  Site barrier_site_{};
  bool shuffle_ = false, depth_first_ = true;
  Random random_;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  std::string error_;
  char start_, end_, barrier_order_[2];  // addresses for release and acquire
  unsigned barrier_turn_ = 0;
  std::mutex mutex_;
};

Engine engine;

uint32_t Engine::lanes(unsigned warp) const {
  const unsigned left = count_ - warp * kLanes;
  return left >= kLanes ? ~0u : (1u << left) - 1;
}

// ---- scheduling

void Engine::wake(unsigned warp, uint32_t mask) {
  // Pushes lanes in the order a * i + b mod 32; 31 * i + 31 is from the last to the first.
  const unsigned a = shuffle_ ? random_.draw() | 1 : 31, b = shuffle_ ? random_.draw() : 31;
  for (unsigned i = 0; i < kLanes; i++) {
    const unsigned lane = (a * i + b) % kLanes;
    if (mask >> lane & 1) ready_[ready_count_++] = warp * kLanes + lane;
  }
}

void Engine::wake_all() {
  const unsigned warps = (count_ + kLanes - 1) / kLanes;
  unsigned order[kMostWarps];
  for (unsigned w = 0; w < warps; w++) order[w] = warps - 1 - w;
  for (unsigned w = warps; shuffle_ && w > 1; w--) std::swap(order[w - 1], order[random_.below(w)]);
  for (unsigned w = 0; w < warps; w++) wake(order[w], lanes(order[w]));
}

Thread* Engine::next_ready() {
  if (ready_count_ == 0) return nullptr;
  if (!depth_first_) std::swap(ready_[random_.below(ready_count_)], ready_[ready_count_ - 1]);
  return &threads_[ready_[--ready_count_]];
}

void Engine::switch_to(Thread* next) {
  Fiber* from = current->fiber;
  current = next;
  threadIdx = next->position;
  from->switch_to(*next->fiber);
}

// Runs another thread, or goes back to run_block where none can run.
void Engine::yield() {
  Thread* next = next_ready();
  if (next == nullptr) next = &main_;
  if (next == current) return;
  if (next->fiber == nullptr) next->fiber = free_.back(), free_.pop_back();
  switch_to(next);
}

void Engine::entry() {
  Fiber::entered();
  engine.live();
}

void Engine::live() {
  for (;;) {
    acquire(&start_);
    body_(context_);
    release(&end_);
    Thread* done = current;
    done->finished = true;
    finished_++;
    Thread* next = next_ready();
    if (next == nullptr) next = &main_;
    if (next->fiber == nullptr && !kThreadSanitizer) {  // it can have this stack, which is in the cache
      next->fiber = done->fiber;
      current = next;
      threadIdx = next->position;
      continue;
    }
    if (!kThreadSanitizer) free_.push_back(done->fiber);
    switch_to(next);
  }
}

void Engine::fail(const std::string& message) {
  if (current == nullptr) throw std::runtime_error("CUDA emulation: " + message);
  const auto describe = [](uint3 p) {
    return "(" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
  };
  error_ = message + " [block " + describe(blockIdx) + ", thread " + describe(current->position) + "]";
  switch_to(&main_);
  __builtin_unreachable();
}

// ---- barriers and collective operations

void Engine::barrier(const char* operation, Vote vote, bool predicate, Site site) {
  Thread* self = current;
  if (arrived_ == 0)
    barrier_operation_ = operation, barrier_site_ = site, votes_ = 0;
  else if (!same(barrier_site_, site) || !same(barrier_operation_, operation))
    fail("barrier divergence: " + std::string(operation) + " at " + describe(site) + ", " + barrier_operation_ +
         " of other threads at " + describe(barrier_site_));
  self->waits = operation, self->site = site;
  votes_ += predicate;
  char* order = &barrier_order_[barrier_turn_];
  release(order);
  if (++arrived_ == count_) {
    vote_result = vote == Vote::kAnd ? votes_ == count_ : vote == Vote::kOr ? votes_ > 0 : static_cast<int>(votes_);
    arrived_ = 0, barrier_turn_ ^= 1;
    wake_all();
  }
  yield();
  acquire(order);
}

void Engine::collective(const Operation& operation, uint32_t mask, void* arguments, void (*compute)(void**, uint32_t),
                        Site site) {
  Thread* self = current;
  const unsigned warp = self->index / kLanes, lane = self->index % kLanes;
  mask &= lanes(warp);
  if (operation.all_lanes && mask != ~0u) fail(std::string(operation.name) + ": needs all 32 lanes of the warp");
  if (!(mask >> lane & 1)) fail(std::string(operation.name) + ": the calling lane is not in its own mask");
  Gathering& g = gatherings_[warp * kLanes + static_cast<unsigned>(__builtin_ctz(mask))];
  if (g.arrived == 0)
    g.mask = mask, g.operation = &operation, g.site = site;
  else if (g.mask != mask || !same(g.operation->name, operation.name) || (operation.all_lanes && !same(g.site, site)))
    fail("warp divergence: " + std::string(operation.name) + " at " + describe(site) + " meets " + g.operation->name +
         " at " + describe(g.site));
  g.arguments[lane] = arguments;
  g.arrived |= 1u << lane;
  self->waits = operation.name, self->site = site;
  char* order = &g.order[g.turn];
  if (operation.ordered) release(order);
  if (g.arrived == mask) {
    compute(g.arguments, mask);
    g.arrived = 0, g.turn ^= 1;
    wake(warp, mask);
  }
  yield();
  if (operation.ordered) acquire(order);
}

std::string Engine::describe_deadlock() const {
  std::map<std::string, unsigned> states;
  for (unsigned i = 0; i < count_; i++) {
    const Thread& t = threads_[i];
    states[t.finished ? "returned" : "wait in " + std::string(t.waits) + " at " + describe(t.site)]++;
  }
  std::string text = "barrier divergence:";
  for (const auto& [state, threads] : states) text += " " + std::to_string(threads) + " thread(s) " + state + ";";
  return text + " block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
         std::to_string(blockIdx.z) + ")";
}

// ---- blocks and grids

void Engine::run_block(uint64_t block) {
  blockIdx.x = static_cast<unsigned>(block % gridDim.x);
  blockIdx.y = static_cast<unsigned>(block / gridDim.x % gridDim.y);
  blockIdx.z = static_cast<unsigned>(block / gridDim.x / gridDim.y);
  shuffle_ = seed != 0;
  random_ = Random(seed, block);
  depth_first_ = !shuffle_ || random_.below(2);
  ready_count_ = arrived_ = finished_ = 0;
  for (unsigned i = 0; i < count_; i++) {
    Thread& t = threads_[i];
    t.fiber = kThreadSanitizer ? fibers_[i].get() : nullptr;
    t.finished = false, t.committed = 0;
    t.copies.clear();
  }
  shared.start_block();
  release(&start_);
  current = &main_;
  wake_all();
  yield();
  if (error_.empty() && finished_ != count_) error_ = describe_deadlock();
  if (!error_.empty()) abandon_block();
  const std::string written = shared.end_block();
  if (error_.empty()) error_ = written;
  acquire(&end_);
}

// Leaves the block's threads where they stand; their stacks start anew.
void Engine::abandon_block() {
  free_.clear();
  for (unsigned i = 0; i < fibers_.size(); i++) {
    fibers_[i]->order_before(main_fiber_);
    fibers_[i]->reset(entry, i);
    free_.push_back(fibers_[i].get());
  }
  for (Gathering& g : gatherings_) g.arrived = 0;
}

void Engine::start_grid(dim3 grid, dim3 block, size_t shared_bytes) {
  gridDim = grid, blockDim = block;
  count_ = block.x * block.y * block.z;
  main_fiber_.adopt_running();
  main_.fiber = &main_fiber_;
  while (fibers_.size() < count_) {
    fibers_.push_back(std::make_unique<Fiber>());
    fibers_.back()->reset(entry, static_cast<unsigned>(fibers_.size()));
    free_.push_back(fibers_.back().get());
  }
  for (unsigned i = 0; i < count_; i++) {
    threads_[i].index = i;
    threads_[i].position = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  }
  shared.start_grid(shared_bytes);
}

void Engine::run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64)
    throw std::runtime_error("CUDA emulation: invalid launch configuration: " + std::to_string(threads) +
                             " threads a block");
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("CUDA emulation: invalid launch configuration: a grid of " + std::to_string(grid.x) +
                             " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z) + " blocks");
  if (shared_bytes > kMostShared)
    throw std::runtime_error("CUDA emulation: invalid launch configuration: " + std::to_string(shared_bytes) +
                             " bytes of shared memory");
  const std::lock_guard<std::mutex> one_at_a_time(mutex_);
  {
    const IgnoreAccesses ignore;
    start_grid(grid, block, shared_bytes);
  }
  body_ = body, context_ = context;
  error_.clear();
  // Blocks in the order a * i + b mod blocks, a without a common divisor with it.
  Random random(seed);
  uint64_t a = 1, b = 0;
  if (seed != 0) {
    do a = random.below(blocks);
    while (std::gcd(a, blocks) != 1);
    b = random.below(blocks);
  }
  for (uint64_t i = 0; i < blocks && error_.empty(); i++) {
    run_block(static_cast<uint64_t>((static_cast<unsigned __int128>(a) * i + b) % blocks));
  }
  current = nullptr;
  if (!error_.empty()) throw std::runtime_error("CUDA emulation: " + error_);
}

}  // namespace

void run_grid(dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* context) {
  engine.run(grid, block, shared, body, context);
}

void set_schedule(uint64_t seed) { engine.seed = seed; }

void* shared_array(size_t bytes, unsigned index) {
  std::string error;
  void* array = engine.shared.array(bytes, index, &error);
  if (array == nullptr) fail(error);
  return array;
}

void check_shared(const void* p, size_t bytes, const char* operation, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0)
    fail(std::string(operation) + ": shared address not aligned to 16 bytes", site);
  if (!engine.shared.allows(p, bytes)) fail(std::string(operation) + ": shared memory out of bounds", site);
}

void fail(const std::string& message) { engine.fail(message); }
void fail(const std::string& message, Site site) { engine.fail(message + " at " + describe(site)); }

int barrier(const char* operation, Vote vote, bool predicate, Site site) {
  engine.barrier(operation, vote, predicate, site);
  return engine.vote_result;
}

unsigned lane_index() { return engine.current->index % kLanes; }

void collective(const Operation& operation, uint32_t mask, void* arguments, void (*compute)(void**, uint32_t),
                Site site) {
  engine.collective(operation, mask, arguments, compute, site);
}

void copy_later(void* destination, const void* bytes) {
  Thread& t = *engine.current;
  t.copies.emplace_back();
  Copy& copy = t.copies.back();
  copy.destination = destination, copy.group = t.committed;
  std::memcpy(copy.bytes, bytes, sizeof copy.bytes);
}

void commit_copies() { engine.current->committed++; }

void wait_for_copies(int groups_left) {
  Thread& t = *engine.current;
  size_t done = 0;
  for (; done < t.copies.size() && t.copies[done].group < t.committed - groups_left; done++)
    std::memcpy(t.copies[done].destination, t.copies[done].bytes, sizeof t.copies[done].bytes);
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace cips3d::emulation

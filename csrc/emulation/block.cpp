#include "block.h"

#include <cstring>
#include <map>
#include <stdexcept>
#include <utility>

#include "sanitizers.h"

namespace cips3d::emulation {
namespace {

std::string describe(uint3 p) {
  return "(" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
}
bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
bool same(Site a, Site b) { return a.line == b.line && same(a.file, b.file); }

}  // namespace

Block the_block;

Random::Random(uint64_t seed, uint64_t stream)
    : state_(((seed + 1) * 0x9E3779B97F4A7C15ull ^ (stream + 1) * 0xBF58476D1CE4E5B9ull) | 1) {
  for (int i = 0; i < 4; i++) draw();
}

uint32_t Block::lanes(unsigned warp) const {
  const unsigned left = count_ - warp * kLanes;
  return left >= kLanes ? ~0u : (1u << left) - 1;
}

// ---- who runs next

void Block::wake(unsigned warp, uint32_t mask) {
  // Pushes lanes in the order a * i + b mod 32; 31 * i + 31 is from the last to the first.
  const unsigned a = shuffle_ ? random_.draw() | 1 : 31, b = shuffle_ ? random_.draw() : 31;
  for (unsigned i = 0; i < kLanes; i++) {
    const unsigned lane = (a * i + b) % kLanes;
    if (mask >> lane & 1) ready_[ready_count_++] = warp * kLanes + lane;
  }
}

void Block::wake_all() {
  const unsigned warps = (count_ + kLanes - 1) / kLanes;
  unsigned order[kMostWarps];
  for (unsigned w = 0; w < warps; w++) order[w] = warps - 1 - w;
  for (unsigned w = warps; shuffle_ && w > 1; w--) std::swap(order[w - 1], order[random_.below(w)]);
  for (unsigned w = 0; w < warps; w++) wake(order[w], lanes(order[w]));
}

// The thread to run next; main_ where none can run.
Thread* Block::next_ready() {
  if (ready_count_ == 0) return &main_;
  if (!depth_first_) std::swap(ready_[random_.below(ready_count_)], ready_[ready_count_ - 1]);
  return &threads_[ready_[--ready_count_]];
}

void Block::switch_to(Thread* next) {
  Fiber* from = running_->fiber;
  running_ = next;
  threadIdx = next->position;
  from->switch_to(*next->fiber);
}

void Block::yield() {
  Thread* next = next_ready();
  if (next == running_) return;
  if (next->fiber == nullptr) next->fiber = free_.back(), free_.pop_back();
  switch_to(next);
}

void Block::enter_fiber() {
  Fiber::entered();
  the_block.run_threads();
}

// What a fiber does: one thread after the other.
void Block::run_threads() {
  for (;;) {
    acquire(&order_->start);
    body_(context_);
    release(&order_->end);
    Thread* done = running_;
    done->finished = true;
    finished_++;
    Thread* next = next_ready();
    if (next->fiber == nullptr) {  // it can have this stack, which is in the cache
      next->fiber = done->fiber;
      running_ = next;
      threadIdx = next->position;
      continue;
    }
    if (!kThreadSanitizer) free_.push_back(done->fiber);
    switch_to(next);
  }
}

void Block::fail(const std::string& message) {
  if (running_ == nullptr) throw std::runtime_error("CUDA emulation: " + message);
  error_ = message + " [block " + describe(blockIdx) + ", thread " + describe(running_->position) + "]";
  switch_to(&main_);
  __builtin_unreachable();
}

// ---- where they wait for each other

int Block::barrier(const char* operation, Vote vote, bool predicate, Site site) {
  if (arrived_ == 0)
    barrier_operation_ = operation, barrier_site_ = site, votes_ = 0;
  else if (!same(barrier_site_, site) || !same(barrier_operation_, operation))
    fail("barrier divergence: " + std::string(operation) + " at " + describe(site) + ", " + barrier_operation_ +
         " of other threads at " + describe(barrier_site_));
  running_->waits = operation, running_->site = site;
  votes_ += predicate;
  char* order = &order_->blocks[parity_].barrier[barrier_turn_];
  release(order);
  if (++arrived_ == count_) {
    vote_result_ = vote == Vote::kAnd ? votes_ == count_ : vote == Vote::kOr ? votes_ > 0 : static_cast<int>(votes_);
    arrived_ = 0, barrier_turn_ ^= 1;
    wake_all();
  }
  yield();
  acquire(order);
  return vote_result_;
}

// The place among the warp's 32 where the lanes of `mask` gather. Others may be gathering too, with other masks.
unsigned Block::find_gathering(unsigned warp, uint32_t mask) const {
  const unsigned first = static_cast<unsigned>(__builtin_ctz(mask));
  unsigned free = kLanes;
  for (unsigned i = 0; i < kLanes; i++) {
    const unsigned place = (first + i) % kLanes;
    const Gathering& g = gatherings_[warp * kLanes + place];
    if (g.mask == mask) return place;  // they do already, or did the last time
    if (g.arrived == 0 && free == kLanes) free = place;
  }
  return free;
}

void Block::collective(const Operation& operation, uint32_t mask, void* arguments, void (*compute)(void**, uint32_t),
                       Site site) {
  const unsigned warp = running_->index / kLanes, lane = running_->index % kLanes;
  mask &= lanes(warp);
  if (operation.all_lanes && mask != ~0u) fail(std::string(operation.name) + ": needs all 32 lanes of the warp");
  if (!(mask >> lane & 1)) fail(std::string(operation.name) + ": the calling lane is not in its own mask");
  const unsigned index = warp * kLanes + find_gathering(warp, mask);
  Gathering& g = gatherings_[index];
  if (g.arrived == 0)
    g.mask = mask, g.operation = &operation, g.site = site;
  else if (!same(g.operation->name, operation.name) || (operation.all_lanes && !same(g.site, site)))
    fail("warp divergence: " + std::string(operation.name) + " at " + describe(site) + " meets " + g.operation->name +
         " at " + describe(g.site));
  g.arguments[lane] = arguments;
  g.arrived |= 1u << lane;
  running_->waits = operation.name, running_->site = site;
  char* order = &order_->blocks[parity_].gatherings[index][g.turn];
  if (operation.ordered) release(order);
  if (g.arrived == mask) {
    compute(g.arguments, mask);
    g.arrived = 0, g.turn ^= 1;
    wake(warp, mask);
  }
  yield();
  if (operation.ordered) acquire(order);
}

void Block::wait_in(std::vector<unsigned>& list, const char* operation, Site site) {
  {
    const IgnoreAccesses ours;
    list.push_back(running_->index);
  }
  running_->waits = operation, running_->site = site;
  yield();
}

void Block::wake_listed(std::vector<unsigned>& list) {
  for (size_t i = list.size(); shuffle_ && i > 1; i--) std::swap(list[i - 1], list[random_.below(i)]);
  for (const unsigned thread : list) ready_[ready_count_++] = thread;
  list.clear();
}

void Block::fence() {
  release(&order_->fence);
  acquire(&order_->fence);
}

std::string Block::describe_deadlock() const {
  std::map<std::string, unsigned> states;
  for (unsigned i = 0; i < count_; i++) {
    const Thread& t = threads_[i];
    states[t.finished ? "returned" : "wait in " + std::string(t.waits) + " at " + describe(t.site)]++;
  }
  std::string text = "barrier divergence:";
  for (const auto& [state, threads] : states) text += " " + std::to_string(threads) + " thread(s) " + state + ";";
  return text.substr(0, text.size() - 1) + " [block " + describe(blockIdx) + "]";
}

// ---- a block from start to end

void Block::start_grid(dim3 size, size_t shared_bytes, void (*body)(void*), void* context) {
  const IgnoreAccesses ignore;
  body_ = body, context_ = context;
  count_ = size.x * size.y * size.z;
  main_fiber_.adopt_running();
  main_.fiber = &main_fiber_;
  // ThreadSanitizer takes what one fiber does as ordered: there every thread has its own, in neighbouring blocks too.
  const size_t needed = kThreadSanitizer ? 2 * count_ : count_;
  while (fibers_.size() < needed) {
    fibers_.push_back(std::make_unique<Fiber>());
    fibers_.back()->reset(enter_fiber, static_cast<unsigned>(fibers_.size()));
    if (!kThreadSanitizer) free_.push_back(fibers_.back().get());
  }
  for (unsigned i = 0; i < count_; i++) {
    threads_[i].index = i;
    threads_[i].position = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
  }
  shared_.start_grid(shared_bytes);
}

std::string Block::run(uint64_t index, uint64_t seed) {
  blockIdx.x = static_cast<unsigned>(index % gridDim.x);
  blockIdx.y = static_cast<unsigned>(index / gridDim.x % gridDim.y);
  blockIdx.z = static_cast<unsigned>(index / gridDim.x / gridDim.y);
  shuffle_ = seed != 0;
  random_ = Random(seed, index);
  depth_first_ = !shuffle_ || random_.below(2) == 0;
  reads_late_ = shuffle_ && random_.below(2) == 0;
  ready_count_ = arrived_ = finished_ = 0;
  parity_ ^= 1;
  for (unsigned i = 0; i < count_; i++) {
    Thread& t = threads_[i];
    t.fiber = kThreadSanitizer ? fibers_[parity_ * count_ + i].get() : nullptr;
    t.finished = false, t.committed = 0;
    t.copies.clear();
  }
  error_.clear();
  shared_.start_block();
  release(&order_->start);
  running_ = &main_;
  wake_all();
  yield();  // comes back when no thread can run
  if (error_.empty() && finished_ != count_) error_ = describe_deadlock();
  if (!error_.empty()) abandon();
  for (const std::string& found : {end_asynchronous_work(error_.empty()), shared_.end_block()})
    if (error_.empty()) error_ = found;
  forget_static_variables();
  running_ = nullptr;
  return error_;
}

void Block::end_grid() { acquire(&order_->end); }

// Leaves the threads where they stand; their stacks start anew.
void Block::abandon() {
  const IgnoreAccesses ignore;
  for (unsigned i = 0; i < count_; i++) {
    Thread& t = threads_[i];
    if (t.finished || t.fiber == nullptr) continue;
    t.fiber->order_before(main_fiber_);
    t.fiber->reset(enter_fiber, i);
    if (!kThreadSanitizer) free_.push_back(t.fiber);
  }
  for (Gathering& g : gatherings_) g.arrived = 0;
}

}  // namespace cips3d::emulation

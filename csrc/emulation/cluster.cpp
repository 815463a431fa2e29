#include "cluster.h"

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

Cluster the_cluster;

Random::Random(uint64_t seed, uint64_t stream)
    : state_(((seed + 1) * 0x9E3779B97F4A7C15ull ^ (stream + 1) * 0xBF58476D1CE4E5B9ull) | 1) {
  for (int i = 0; i < 4; i++) draw();
}

uint32_t Cluster::lanes(unsigned warp) const {
  const unsigned left = ranks_ * count_ - warp * kLanes;  // blocks of a cluster have whole warps
  return left >= kLanes ? ~0u : (1u << left) - 1;
}

// ---- who runs next

void Cluster::wake(unsigned warp, uint32_t mask) {
  // Pushes lanes in the order a * i + b mod 32; 31 * i + 31 is from the last to the first.
  const unsigned a = shuffle_ ? random_.draw() | 1 : 31, b = shuffle_ ? random_.draw() : 31;
  for (unsigned i = 0; i < kLanes; i++) {
    const unsigned lane = (a * i + b) % kLanes;
    if (mask >> lane & 1) ready_[ready_count_++] = warp * kLanes + lane;
  }
}

void Cluster::wake_block(unsigned rank) {
  const unsigned warps = (count_ + kLanes - 1) / kLanes, first = rank * count_ / kLanes;
  unsigned order[kMostWarps];
  for (unsigned w = 0; w < warps; w++) order[w] = first + warps - 1 - w;
  for (unsigned w = warps; shuffle_ && w > 1; w--) std::swap(order[w - 1], order[random_.below(w)]);
  for (unsigned w = 0; w < warps; w++) wake(order[w], lanes(order[w]));
}

// The thread to run next; main_ where none can run.
Thread* Cluster::next_ready() {
  if (ready_count_ == 0) return &main_;
  if (!depth_first_) std::swap(ready_[random_.below(ready_count_)], ready_[ready_count_ - 1]);
  return &threads_[ready_[--ready_count_]];
}

void Cluster::switch_thread(Thread* next) {
  running_ = next;
  threadIdx = next->position;
  blockIdx.x = first_block_.x + next->rank;
}

void Cluster::switch_to(Thread* next) {
  Fiber* from = running_->fiber;
  switch_thread(next);
  from->switch_to(*next->fiber);
}

void Cluster::yield() {
  Thread* next = next_ready();
  if (next == running_) return;
  if (next->fiber == nullptr) next->fiber = free_.back(), free_.pop_back();
  switch_to(next);
}

void Cluster::enter_fiber() {
  Fiber::entered();
  the_cluster.run_threads();
}

// What a fiber does: one thread after the other.
void Cluster::run_threads() {
  for (;;) {
    acquire(&order_->start);
    body_(context_);
    release(&order_->end);
    Thread* done = running_;
    done->finished = true;
    finished_++, barriers_[done->rank].returned++;
    Thread* next = next_ready();
    if (next->fiber == nullptr) {  // it can have this stack, which is in the cache
      next->fiber = done->fiber;
      switch_thread(next);
      continue;
    }
    if (!kThreadSanitizer) free_.push_back(done->fiber);
    switch_to(next);
  }
}

void Cluster::fail(const std::string& message) {
  if (running_ == nullptr) throw std::runtime_error("CUDA emulation: " + message);
  error_ = message + " [block " + describe(blockIdx) + ", thread " + describe(running_->position) + "]";
  switch_to(&main_);
  __builtin_unreachable();
}

// ---- where they wait for each other

int Cluster::barrier(const char* operation, Vote vote, bool predicate, Site site) {
  const unsigned rank = running_->rank;
  Barrier& b = barriers_[rank];
  if (b.arrived == 0)
    b.operation = operation, b.site = site, b.votes = 0;
  else if (!same(b.site, site) || !same(b.operation, operation))
    fail("barrier divergence: " + std::string(operation) + " at " + describe(site) + ", " + b.operation +
         " of other threads at " + describe(b.site));
  running_->waits = operation, running_->site = site;
  b.votes += predicate;
  char* order = &order_->clusters[parity_].barriers[rank][b.turn];
  release(order);
  if (++b.arrived == count_) {
    b.result = vote == Vote::kAnd ? b.votes == count_ : vote == Vote::kOr ? b.votes > 0 : static_cast<int>(b.votes);
    b.arrived = 0, b.turn ^= 1;
    wake_block(rank);
  }
  yield();
  acquire(order);
  return b.result;
}

// The place among the warp's 32 where the lanes of `mask` gather. Others may be gathering too, with other masks.
unsigned Cluster::find_gathering(unsigned warp, uint32_t mask) const {
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

void Cluster::collective(const Operation& operation, uint32_t mask, void* arguments, void (*compute)(void**, uint32_t),
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
  char* order = &order_->clusters[parity_].gatherings[index][g.turn];
  if (operation.ordered) release(order);
  if (g.arrived == mask) {
    compute(g.arguments, mask);
    g.arrived = 0, g.turn ^= 1;
    wake(warp, mask);
  }
  yield();
  if (operation.ordered) acquire(order);
}

void Cluster::wait_in(std::vector<unsigned>& list, const char* operation, Site site) {
  {
    const IgnoreAccesses ours;
    list.push_back(running_->index);
  }
  running_->waits = operation, running_->site = site;
  yield();
}

void Cluster::wake_listed(std::vector<unsigned>& list) {
  for (size_t i = list.size(); shuffle_ && i > 1; i--) std::swap(list[i - 1], list[random_.below(i)]);
  for (const unsigned thread : list) ready_[ready_count_++] = thread;
  list.clear();
}

void* Cluster::mapped(const void* p, unsigned rank, Site site) {
  if (!shared().holds(p)) emulation::fail("a cluster shares dynamic shared memory alone", site);
  void* there = shared_[rank].at(shared().place(p));
  if (!shared_[rank].allows(there, 1)) emulation::fail("another block of the cluster has not come so far", site);
  if (barriers_[rank].returned == count_) emulation::fail("another block of the cluster has ended", site);
  return there;
}

void Cluster::fence() {
  release(&order_->fence);
  acquire(&order_->fence);
}

std::string Cluster::describe_deadlock() const {
  std::map<std::string, unsigned> states;
  for (unsigned i = 0; i < ranks_ * count_; i++) {
    const Thread& t = threads_[i];
    states[t.finished ? "returned" : "wait in " + std::string(t.waits) + " at " + describe(t.site)]++;
  }
  std::string text = "barrier divergence:";
  for (const auto& [state, threads] : states) text += " " + std::to_string(threads) + " thread(s) " + state + ";";
  return text.substr(0, text.size() - 1) + " [block " + describe(blockIdx) + "]";
}

// ---- a cluster from start to end

void Cluster::start_grid(dim3 size, unsigned ranks, size_t shared_bytes, void (*body)(void*), void* context) {
  const IgnoreAccesses ignore;
  body_ = body, context_ = context;
  ranks_ = ranks, count_ = size.x * size.y * size.z;
  const unsigned threads = ranks * count_;
  main_fiber_.adopt_running();
  main_.fiber = &main_fiber_;
  // ThreadSanitizer takes what one fiber does as ordered: there every thread has its own, in neighbouring clusters too.
  const size_t needed = kThreadSanitizer ? 2 * threads : threads;
  while (fibers_.size() < needed) {
    fibers_.push_back(std::make_unique<Fiber>());
    fibers_.back()->reset(enter_fiber, static_cast<unsigned>(fibers_.size()));
    if (!kThreadSanitizer) free_.push_back(fibers_.back().get());
  }
  for (unsigned t = 0; t < threads; t++) {
    const unsigned i = t % count_;
    threads_[t].index = t, threads_[t].rank = t / count_;
    threads_[t].position = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
  }
  for (unsigned rank = 0; rank < ranks; rank++) shared_[rank].start_grid(shared_bytes);
}

std::string Cluster::run(uint64_t index, uint64_t seed) {
  const uint64_t block = ranks_ * index;
  first_block_.x = static_cast<unsigned>(block % gridDim.x);
  blockIdx.y = static_cast<unsigned>(block / gridDim.x % gridDim.y);
  blockIdx.z = static_cast<unsigned>(block / gridDim.x / gridDim.y);
  shuffle_ = seed != 0;
  random_ = Random(seed, index);
  depth_first_ = !shuffle_ || random_.below(2) == 0;
  reads_late_ = shuffle_ && random_.below(2) == 0;
  ready_count_ = finished_ = 0;
  parity_ ^= 1;
  const unsigned threads = ranks_ * count_;
  for (unsigned i = 0; i < threads; i++) {
    Thread& t = threads_[i];
    t.fiber = kThreadSanitizer ? fibers_[parity_ * threads + i].get() : nullptr;
    t.finished = false, t.committed = 0;
    t.copies.clear();
  }
  error_.clear();
  for (unsigned rank = 0; rank < ranks_; rank++)
    shared_[rank].start_block(), barriers_[rank].arrived = barriers_[rank].returned = 0;
  release(&order_->start);
  running_ = &main_;
  for (unsigned rank = ranks_; rank > 0; rank--) wake_block(rank - 1);
  yield();  // comes back when no thread can run
  if (error_.empty() && finished_ != threads) error_ = describe_deadlock();
  if (!error_.empty()) abandon();
  const std::string left = end_asynchronous_work(error_.empty());
  if (error_.empty()) error_ = left;
  for (unsigned rank = 0; rank < ranks_; rank++) {
    const std::string found = shared_[rank].end_block();
    if (error_.empty()) error_ = found;
  }
  forget_static_variables();
  running_ = nullptr;
  return error_;
}

void Cluster::end_grid() { acquire(&order_->end); }

// Leaves the threads where they stand; their stacks start anew.
void Cluster::abandon() {
  const IgnoreAccesses ignore;
  for (unsigned i = 0; i < ranks_ * count_; i++) {
    Thread& t = threads_[i];
    if (t.finished || t.fiber == nullptr) continue;
    t.fiber->order_before(main_fiber_);
    t.fiber->reset(enter_fiber, i);
    if (!kThreadSanitizer) free_.push_back(t.fiber);
  }
  for (Gathering& g : gatherings_) g.arrived = 0;
}

}  // namespace cips3d::emulation

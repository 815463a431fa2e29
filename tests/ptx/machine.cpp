#include "machine.h"

#include <algorithm>
#include <climits>
#include <stdexcept>

namespace ptx {

constexpr uint64_t kUnwritten = 0xfff7fff7fff7fff7ull;  // NaN, of any width

Warp::Warp(Block& block_, const Function& function_, int index_, uint32_t lanes)
    : block(block_),
      function(function_),
      index(index_),
      alive(lanes),
      registers(static_cast<size_t>(function_.slots) * kLanes, kUnwritten),
      local((function_.local_bytes + 15) / 16 * 2 * kLanes, kUnwritten) {
  const Launch& launch = block.launch;
  const auto of_axis = [](const Dim3& d, uint64_t axis) { return axis == 0 ? d.x : axis == 1 ? d.y : d.z; };
  for (const Preset& preset : function.presets) {
    for (int lane = 0; lane < kLanes; lane++) {
      const unsigned thread = index * kLanes + lane;
      const Dim3 position = {thread % launch.block.x, thread / launch.block.x % launch.block.y,
                             thread / launch.block.x / launch.block.y};
      uint64_t value = preset.value;
      switch (preset.is) {
        case Preset::Is::kConstant: break;
        case Preset::Is::kTid: value = of_axis(position, value); break;
        case Preset::Is::kCtaid: value = of_axis(block.index, value); break;
        case Preset::Is::kNtid: value = of_axis(launch.block, value); break;
        case Preset::Is::kNctaid: value = of_axis(launch.grid, value); break;
        case Preset::Is::kRank: value = block.rank; break;
        case Preset::Is::kRanks: value = block.cluster.ranks; break;
        case Preset::Is::kLocal: value += reinterpret_cast<uint64_t>(&local[local.size() / kLanes * lane]); break;
        case Preset::Is::kParameters: value += reinterpret_cast<uint64_t>(launch.parameters); break;
        case Preset::Is::kShared:
          value = kSharedBase + (value == UINT64_MAX ? (launch.function.shared_bytes + 127) / 128 * 128 : value);
          break;
      }
      set(Operand{preset.slot}, lane, value);
    }
  }
  select();
}

void Warp::fail(const std::string& what) const {
  const Instruction& instruction = function.code[std::min<size_t>(current_, function.code.size() - 1)];
  const std::string at = function.file + ".ptx:" + std::to_string(instruction.line);
  throw std::runtime_error(instruction.opcode + ": " + what + " at " +
                           (instruction.source.empty() ? at : instruction.source) + " (" + at + ", warp " +
                           std::to_string(index) + " of block " + std::to_string(block.index.x) + ", " +
                           std::to_string(block.index.y) + ", " + std::to_string(block.index.z) + ")");
}

void Warp::select(uint32_t except) {
  current_ = join_ = INT_MAX;
  active_ = 0;
  if ((alive & ~waiting_) == 0) waiting_ = 0;  // those that they waited for have returned
  uint32_t candidates = alive & ~waiting_ & ~except;
  if (candidates == 0) candidates = alive & ~waiting_;
  for_lanes(candidates, [&](int lane) { current_ = std::min(current_, at_[lane]); });
  for_lanes(alive, [&](int lane) {
    if (at_[lane] == current_)
      active_ |= 1u << lane;
    else if (at_[lane] > current_)
      join_ = std::min(join_, at_[lane]);
  });
  waiting_ &= ~active_;
}

// Where others still have to come, these lanes wait and others go on.
bool Warp::join_or_wait(const Instruction& instruction, uint32_t lanes) {
  uint32_t mask = 0;
  for_lanes(lanes, [&](int lane) { mask |= get<uint32_t>(instruction.operands[instruction.together], lane); });
  if ((mask & alive & ~lanes) == 0) return false;
  for_lanes(active_, [&](int lane) { at_[lane] = current_; });
  if ((waiting_ | active_) == alive) fail("not all lanes of the mask come here");
  waiting_ |= active_;
  select();
  return true;
}

Warp::State Warp::run(int instructions) {
  if (polls_) select(active_);
  polls_ = false;
  for (; instructions > 0; instructions--) {
    if (alive == 0) return State::kFinished;
    const Instruction& instruction = function.code[current_];
    instruction.counts.runs++;
    uint32_t lanes = active_;
    if (instruction.guard >= 0) {
      uint32_t holds = 0;
      for (int lane = 0; lane < kLanes; lane++)
        holds |= static_cast<uint32_t>(get<uint8_t>({instruction.guard}, lane) & 1) << lane;
      lanes &= instruction.negated ? ~holds : holds;
    }
    const auto others_go_on = [&] { for_lanes(active_ & ~lanes, [&](int lane) { at_[lane] = current_ + 1; }); };
    switch (instruction.kind) {
      case Kind::kPlain:
        if (instruction.together >= 0 && lanes != 0 && join_or_wait(instruction, lanes)) continue;
        if (lanes != 0) instruction.run(*this, instruction, lanes);
        break;
      case Kind::kRetry:
        retries = false;
        instruction.run(*this, instruction, lanes);
        if (retries) instructions = 1, polls_ = true;  // let others go on
        break;
      case Kind::kBranch:
        if (lanes == alive) {
          current_ = instruction.target;
        } else {
          others_go_on();
          for_lanes(lanes, [&](int lane) { at_[lane] = instruction.target; });
          select();
        }
        continue;
      case Kind::kReturn:
        others_go_on();
        alive &= ~lanes;
        select();
        continue;
      case Kind::kCall: {
        Warp called(block, *instruction.function, index, lanes);
        const std::vector<int>& slots = instruction.function->parameter_slots;
        if (slots.size() != instruction.operands.size()) fail("another number of arguments");
        for (size_t i = 0; i < slots.size(); i++)
          for_lanes(lanes, [&](int lane) {
            called.set<uint64_t>(Operand{slots[i]}, lane, get<uint64_t>(instruction.operands[i], lane));
          });
        called.run_called();
        break;
      }
      case Kind::kBarrier: {
        if (lanes != alive) fail("not all lanes have come");
        const int lane = __builtin_ctz(lanes);
        barrier = get<uint32_t>(instruction.operands[0], lane);
        barrier_threads = instruction.operands.size() > 1 ? get<uint32_t>(instruction.operands[1], lane) : 0;
        for_lanes(active_, [&](int l) { at_[l] = current_ + 1; });
        select();
        return State::kAtBarrier;
      }
    }
    if (++current_ == join_) {
      for_lanes(active_, [&](int lane) { at_[lane] = current_; });
      select();
    }
  }
  for_lanes(active_, [&](int lane) { at_[lane] = current_; });
  return alive == 0 ? State::kFinished : State::kReady;
}

void Warp::run_called() {
  for (;;) {
    const State state = run(1 << 20);
    if (state == State::kFinished) return;
    if (state == State::kAtBarrier || retries) fail("a function that is called waits");
  }
}

Block::Block(Launch& launch_, Cluster& cluster_, unsigned rank_, Dim3 index_)
    : launch(launch_), cluster(cluster_), rank(rank_), index(index_) {
  shared_bytes = (launch.function.shared_bytes + 127) / 128 * 128 + launch.dynamic_shared;
  shared.assign((shared_bytes + 7) / 8 + 1, kUnwritten);
}

unsigned char* Block::shared_at(uint64_t address, size_t bytes) {
  if (address < kSharedBase || address + bytes > kSharedBase + shared_bytes) return nullptr;
  return reinterpret_cast<unsigned char*>(shared.data()) + (address - kSharedBase);
}

void Block::complete(uint64_t address) {
  PhaseBarrier& barrier = phase_barriers.at(address);
  if (barrier.pending == 0 && barrier.bytes == 0) barrier.phase++, barrier.pending = barrier.arrivals;
}

void Block::deliver(size_t copy) {
  const BulkCopy of = bulk_copies[copy];
  bulk_copies.erase(bulk_copies.begin() + static_cast<ptrdiff_t>(copy));
  std::memcpy(shared_at(of.shared, of.bytes), reinterpret_cast<const void*>(of.global), of.bytes);
  phase_barriers.at(of.barrier).bytes -= static_cast<int64_t>(of.bytes);
  phase_barriers.at(of.barrier).unseen = true;
  complete(of.barrier);
}

size_t Block::alive() const {
  size_t count = 0;
  for (const auto& warp : warps) count += warp->alive != 0;
  return count;
}

Cluster::Cluster(Launch& launch, unsigned ranks_, Dim3 first, std::mt19937& random) : ranks(ranks_), random_(random) {
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  for (unsigned rank = 0; rank < ranks; rank++) {
    blocks.push_back(std::make_unique<Block>(launch, *this, rank, Dim3{first.x + rank, first.y, first.z}));
    Block& block = *blocks.back();
    for (unsigned i = 0; i < threads; i += kLanes)
      block.warps.push_back(std::make_unique<Warp>(block, launch.function, i / kLanes,
                                                   threads - i < kLanes ? (1u << (threads - i)) - 1 : ~0u));
  }
}

// A barrier opens when the threads it counts have come; one without a count waits for all that there are.
void Cluster::open_barriers(std::vector<Warp*>& waiting, std::vector<Warp*>& ready) {
  for (const Warp* one : std::vector<Warp*>(waiting)) {
    const bool of_all = one->barrier == kClusterBarrier;
    const auto meets = [&](const Warp* other) {
      return other->barrier == one->barrier && (of_all || &other->block == &one->block);
    };
    size_t here = 0, alive = of_all ? 0 : one->block.alive();
    for (size_t i = 0; of_all && i < blocks.size(); i++) alive += blocks[i]->alive();
    for (const Warp* other : waiting) here += meets(other);
    if (here < (one->barrier_threads == 0 ? alive : one->barrier_threads / kLanes)) continue;
    std::vector<Warp*> still;
    for (Warp* other : waiting) (meets(other) ? ready : still).push_back(other);
    waiting = still;
    return;
  }
}

void Cluster::run() {
  std::vector<Warp*> ready, waiting;
  for (const auto& block : blocks)
    for (const auto& warp : block->warps) ready.push_back(warp.get());
  long fruitless = 0;
  while (!ready.empty()) {
    for (const auto& block : blocks)
      if (!block->bulk_copies.empty() && random_() % 4 == 0) block->deliver(random_() % block->bulk_copies.size());
    const size_t turn = random_() % ready.size();
    Warp& warp = *ready[turn];
    warp.retries = false;
    const int instructions = 1 + static_cast<int>(random_() % 300);
    const Warp::State state = warp.run(instructions);
    if (warp.retries)
      fruitless++;
    else if (instructions > 64 || state != Warp::State::kReady)  // more than once around a loop that waits
      fruitless = 0;
    if (fruitless > 20000) warp.fail("a phase that never ends");
    if (state == Warp::State::kReady) continue;
    ready.erase(ready.begin() + static_cast<ptrdiff_t>(turn));
    if (state == Warp::State::kAtBarrier) waiting.push_back(&warp);
    open_barriers(waiting, ready);
  }
  if (!waiting.empty()) waiting[0]->fail("some threads never come");
  for (const auto& block : blocks) {
    bool unseen = !block->bulk_copies.empty();
    for (const auto& [address, barrier] : block->phase_barriers) unseen |= barrier.unseen;
    if (unseen) throw std::runtime_error(block->launch.function.name + ": a copy that nothing waits for");
  }
}

}  // namespace ptx

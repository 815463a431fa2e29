// Instructions that read and write memory. PTX ISA, "Data movement and conversion", "Parallel synchronization".
// Global and generic addresses are the process's own; those of shared memory begin at kSharedBase.
#include <algorithm>
#include <sstream>

#include "machine.h"

namespace ptx {

bool counting = false;

namespace {

// A generic address may be one of the block's shared memory.
bool is_shared(const Warp& warp, uint64_t address) {
  const auto first = reinterpret_cast<uint64_t>(warp.block.shared.data());
  return address >= first && address < first + 8 * warp.block.shared.size();
}

unsigned char* place(Warp& warp, uint64_t address, size_t bytes, bool shared) {
  if (address % bytes != 0) warp.fail("an address that is not aligned to " + std::to_string(bytes) + " bytes");
  unsigned char* at = shared ? warp.block.shared_at(address, bytes) : reinterpret_cast<unsigned char*>(address);
  if (at == nullptr)
    warp.fail(shared ? "shared memory out of bounds, at " + std::to_string(address) : "a null pointer");
  return at;
}

void note_written(Warp& warp, uint64_t address, size_t bytes) {
  if (is_shared(warp, address)) return;
  for (uint64_t line = address / 32; line <= (address + bytes - 1) / 32; line++) warp.block.launch.written.insert(line);
}

// Wavefronts that shared memory takes for the addresses of a warp: 32 banks of 4 bytes, each gives one word at a time,
// whoever asks for it; 8 bytes a lane go by half warps, 16 by quarters.
void count_shared(const Warp& warp, const Instruction& i, uint32_t lanes, Operand address, size_t bytes) {
  const int at_a_time = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (int first = 0; first < kLanes; first += at_a_time) {
    std::unordered_set<uint64_t> words;
    int of_bank[32] = {}, most = 0;
    for (int l = first; l < first + at_a_time; l++) {
      if (!(lanes >> l & 1)) continue;
      const uint64_t at = warp.address(address, l, false);
      for (uint64_t word = at / 4; word <= (at + bytes - 1) / 4; word++)
        if (words.insert(word).second) most = std::max(most, ++of_bank[word % 32]);
    }
    i.counts.transfers += most, i.counts.least += most > 0;
  }
}
// Sectors of 32 bytes of global memory.
void count_global(const Warp& warp, const Instruction& i, uint32_t lanes, Operand address, size_t bytes) {
  std::unordered_set<uint64_t> sectors;
  for_lanes(lanes, [&](int l) { sectors.insert(warp.address(address, l, true) / 32); });
  i.counts.transfers += sectors.size();
  i.counts.least += (__builtin_popcount(lanes) * bytes + 31) / 32;
}

enum class Space { kGlobal, kConstantGlobal, kShared };

// ld and st of `count` elements of T; registers hold what is read sign-extended where T is signed.
template <class T, int count, Space space>
void load(Warp& warp, const Instruction& i, uint32_t lanes) {
  constexpr bool shared = space == Space::kShared;
  const Operand from = i.operands.back();
  if (counting) (shared ? count_shared : count_global)(warp, i, lanes, from, sizeof(T) * count);
  for_lanes(lanes, [&](int l) {
    const uint64_t address = warp.address(from, l, !shared);
    T values[count];
    std::memcpy(values, place(warp, address, sizeof values, shared), sizeof values);
    if (space == Space::kConstantGlobal)  // what the launch itself writes may be read by ld.global.nc as it was before
      for (uint64_t line = address / 32; line <= (address + sizeof values - 1) / 32; line++)
        if (warp.block.launch.written.count(line)) warp.fail("ld.global.nc beside a store of the same launch");
    for (int k = 0; k < count; k++) {
      if (std::is_signed_v<T>)
        warp.set<int64_t>(i.operands[k], l, static_cast<int64_t>(values[k]));
      else
        warp.set<T>(i.operands[k], l, values[k]);
    }
  });
}
template <class T, int count, Space space>
void store(Warp& warp, const Instruction& i, uint32_t lanes) {
  constexpr bool shared = space == Space::kShared;
  if (counting) (shared ? count_shared : count_global)(warp, i, lanes, i.operands[0], sizeof(T) * count);
  for_lanes(lanes, [&](int l) {
    const uint64_t address = warp.address(i.operands[0], l, !shared);
    T values[count];
    for (int k = 0; k < count; k++) values[k] = warp.get<T>(i.operands[1 + k], l);
    std::memcpy(place(warp, address, sizeof values, shared), values, sizeof values);
    if (!shared) note_written(warp, address, sizeof values);
  });
}

template <class T, Space space>
Handler access_handler(bool loads, const std::string& vector) {
  if (vector.empty()) return loads ? load<T, 1, space> : store<T, 1, space>;
  if (vector == "v2") return loads ? load<T, 2, space> : store<T, 2, space>;
  if constexpr (sizeof(T) <= 4)
    if (vector == "v4") return loads ? load<T, 4, space> : store<T, 4, space>;
  return nullptr;
}
template <class T>
Handler access_handler(bool loads, Space space, const std::string& vector) {
  if (space == Space::kShared) return access_handler<T, Space::kShared>(loads, vector);
  if (space == Space::kConstantGlobal) return access_handler<T, Space::kConstantGlobal>(loads, vector);
  return access_handler<T, Space::kGlobal>(loads, vector);
}

// ld.global.nc.v4.f32: where, how many, and of what, in this order. Parameters of entries lie in memory.
Handler access_handler(const std::string& opcode) {
  std::stringstream words(opcode);
  std::string word, vector, type;
  std::getline(words, word, '.');
  const bool loads = word == "ld";
  if (!loads && word != "st") return nullptr;
  Space space = Space::kGlobal;
  while (std::getline(words, word, '.')) {
    if (word == "shared") {
      space = Space::kShared;
    } else if (word == "nc") {
      space = Space::kConstantGlobal;
    } else if (word == "v2" || word == "v4") {
      vector = word;
    } else if (word != "global" && word != "param" && word != "local" && word != "volatile") {
      type = word;
    }
  }
  if (type == "s8") return access_handler<int8_t>(loads, space, vector);
  if (type == "s16") return access_handler<int16_t>(loads, space, vector);
  if (type == "s32") return access_handler<int32_t>(loads, space, vector);
  if (type == "u8" || type == "b8") return access_handler<uint8_t>(loads, space, vector);
  if (type == "u16" || type == "b16") return access_handler<uint16_t>(loads, space, vector);
  if (type == "u32" || type == "b32" || type == "f32") return access_handler<uint32_t>(loads, space, vector);
  if (type == "u64" || type == "b64" || type == "f64" || type == "s64")
    return access_handler<uint64_t>(loads, space, vector);
  return nullptr;
}

// d = [a], [a] = f([a], b), one lane after the other; a reduction (red) has no d.
template <class T, bool shared, auto f>
void atomic(Warp& warp, const Instruction& i, uint32_t lanes) {
  const bool gives = i.operands.size() == 3;
  for_lanes(lanes, [&](int l) {
    const uint64_t address = warp.address(i.operands[gives], l, !shared);
    unsigned char* at = place(warp, address, sizeof(T), shared);
    T before;
    std::memcpy(&before, at, sizeof before);
    const T after = f(before, warp.get<T>(i.operands[gives + 1], l));
    std::memcpy(at, &after, sizeof after);
    if (gives) warp.set<T>(i.operands[0], l, before);
    if (!shared) note_written(warp, address, sizeof(T));
  });
}

template <class T>
T sum(T a, T b) {
  return a + b;
}
int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

void nothing(Warp&, const Instruction&, uint32_t) {}
void trap(Warp& warp, const Instruction&, uint32_t) { warp.fail("__trap"); }
void same_address(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) { warp.set<uint64_t>(i.operands[0], l, warp.get<uint64_t>(i.operands[1], l)); });
}

void generic_address(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t base = reinterpret_cast<uint64_t>(warp.block.shared.data()) - kSharedBase;
  for_lanes(lanes, [&](int l) { warp.set<uint64_t>(i.operands[0], l, base + warp.get<uint64_t>(i.operands[1], l)); });
}

// cp.async: what it reads reaches shared memory when the thread waits, no sooner.
void start_copy(Warp& warp, const Instruction& i, uint32_t lanes) {
  if (counting) count_global(warp, i, lanes, i.operands[1], 16);
  for_lanes(lanes, [&](int l) {
    LaneCopy copy = {};
    copy.shared = warp.address(i.operands[0], l, false);
    place(warp, copy.shared, 16, true);
    const auto bytes = i.operands.size() > 3 ? warp.get<uint32_t>(i.operands[3], l) : 16;
    const uint64_t from = warp.address(i.operands[1], l, true);
    if (from % 16 != 0) warp.fail("a source that is not aligned to 16 bytes");
    if (bytes > 0) std::memcpy(copy.bytes, reinterpret_cast<const void*>(from), std::min(bytes, 16u));
    copy.group = warp.committed[l];
    warp.copies[l].push_back(copy);
  });
}
void commit_copies(Warp& warp, const Instruction&, uint32_t lanes) {
  for_lanes(lanes, [&](int l) { warp.committed[l]++; });
}
void wait_for_copies(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const int left = i.operands.empty() ? 0 : warp.get<int>(i.operands[0], l);
    std::vector<LaneCopy> later;
    for (const LaneCopy& copy : warp.copies[l]) {
      if (copy.group < warp.committed[l] - left)
        std::memcpy(warp.block.shared_at(copy.shared, 16), copy.bytes, 16);
      else
        later.push_back(copy);
    }
    warp.copies[l] = later;
  });
}

// mbarrier and cp.async.bulk
void init_phases(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const uint64_t address = warp.address(i.operands[0], l, false);
    place(warp, address, 8, true);
    const auto count = warp.get<uint32_t>(i.operands[1], l);
    warp.block.phase_barriers[address] = {count, count, 0, 0, false};
  });
}
PhaseBarrier& phases_at(Warp& warp, uint64_t address) {
  const auto found = warp.block.phase_barriers.find(address);
  if (found == warp.block.phase_barriers.end()) warp.fail("no barrier was initialised there");
  return found->second;
}
void arrive_and_expect(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const uint64_t address = warp.address(i.operands[1], l, false);
    PhaseBarrier& barrier = phases_at(warp, address);
    if (barrier.pending == 0) warp.fail("more arrivals than the barrier was initialised for");
    barrier.bytes += warp.get<uint32_t>(i.operands[2], l);
    barrier.pending--;
    warp.block.complete(address);
  });
}
// mapa: the address of the same place in another block of the cluster.
void map_address(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const auto rank = warp.get<uint32_t>(i.operands[2], l);
    if (rank >= warp.block.cluster.blocks.size()) warp.fail("no block of that rank");
    warp.set<uint32_t>(i.operands[0], l, warp.address(i.operands[1], l, false) | (rank + 1) << kRankShift);
  });
}
void add_in_cluster(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const uint64_t address = warp.address(i.operands[1], l, false), rank = address >> kRankShift;
    Block& block = rank == 0 ? warp.block : *warp.block.cluster.blocks.at(rank - 1);
    if (block.alive() == 0) warp.fail("a block that has ended");
    unsigned char* at = block.shared_at(address & ((1u << kRankShift) - 1), sizeof(uint32_t));
    if (at == nullptr) warp.fail("shared memory out of bounds");
    uint32_t before;
    std::memcpy(&before, at, sizeof before);
    const uint32_t after = before + warp.get<uint32_t>(i.operands[2], l);
    std::memcpy(at, &after, sizeof after);
    warp.set<uint32_t>(i.operands[0], l, before);
  });
}
void try_wait(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    PhaseBarrier& barrier = phases_at(warp, warp.address(i.operands[1], l, false));
    const bool over = (barrier.phase & 1) != (warp.get<uint32_t>(i.operands[2], l) & 1);
    warp.set<uint8_t>(i.operands[0], l, over);
    if (over)
      barrier.unseen = false;
    else
      warp.retries = true;
  });
}
void start_bulk_copy(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const BulkCopy copy = {warp.address(i.operands[0], l, false), warp.address(i.operands[1], l, true),
                           warp.get<uint32_t>(i.operands[2], l), warp.address(i.operands[3], l, false)};
    if (copy.bytes % 16 != 0 || copy.shared % 16 != 0 || copy.global % 16 != 0)
      warp.fail("addresses and bytes have to be multiples of 16");
    if (warp.block.shared_at(copy.shared, copy.bytes) == nullptr) warp.fail("shared memory out of bounds");
    const uint32_t ranks = i.operands.size() > 4 ? warp.get<uint16_t>(i.operands[4], l) : 1u << warp.block.rank;
    const auto& blocks = warp.block.cluster.blocks;
    if (ranks >> blocks.size() != 0) warp.fail("no block of that rank");
    for_lanes(ranks, [&](int rank) {
      if (blocks[rank]->phase_barriers.count(copy.barrier) == 0) warp.fail("no barrier was initialised there");
      blocks[rank]->bulk_copies.push_back(copy);
    });
  });
}

}  // namespace

Handler memory_handler(const std::string& opcode) {
  static const std::map<std::string, Handler> table = {
      {"atom.global.add.f32", atomic<float, false, sum<float>>},
      {"atom.global.add.u32", atomic<uint32_t, false, sum<uint32_t>>},
      {"red.global.add.f32", atomic<float, false, sum<float>>},
      {"red.global.add.u32", atomic<uint32_t, false, sum<uint32_t>>},
      {"atom.shared.max.s32", atomic<int32_t, true, larger>},
      {"red.shared.max.s32", atomic<int32_t, true, larger>},
      {"atom.global.max.s32", atomic<int32_t, false, larger>},
      {"red.global.max.s32", atomic<int32_t, false, larger>},
      {"atom.relaxed.cta.shared::cta.add.u32", atomic<uint32_t, true, sum<uint32_t>>},
      {"prefetch.global.L1", nothing},
      {"fence.proxy.async.shared::cta", nothing},
      {"fence.mbarrier_init.release.cluster", nothing},
      {"membar.gl", nothing},
      {"trap", trap},
      {"cvta.to.global.u64", same_address},
      {"cvta.param.u64", same_address},
      {"cvta.local.u64", same_address},
      {"cvta.shared.u64", generic_address},
      {"cp.async.cg.shared.global", start_copy},
      {"cp.async.commit_group", commit_copies},
      {"cp.async.wait_group", wait_for_copies},
      {"mbarrier.init.shared::cta.b64", init_phases},
      {"mbarrier.arrive.expect_tx.shared::cta.b64", arrive_and_expect},
      {"mbarrier.try_wait.parity.shared::cta.b64", try_wait},
      {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", start_bulk_copy},
      {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster", start_bulk_copy},
      {"mapa.shared::cluster.u32", map_address},
      {"atom.relaxed.cluster.shared::cluster.add.u32", add_in_cluster},
      {"barrier.cluster.arrive.release.aligned", nothing},
  };
  const auto known = table.find(opcode);
  return known != table.end() ? known->second : access_handler(opcode);
}

}  // namespace ptx

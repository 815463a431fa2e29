#include "warpgroup.h"

#include <algorithm>
#include <cstring>

#include "cluster.h"
#include "sanitizers.h"
#include "tensor_core.h"

namespace cips3d::emulation {
namespace {

// Sums of a thread, while products are being added to them.
struct Sums {
  float* in_flight;  // where the kernel has them
  int count;
  float values[kMostSums];
};

struct Lane {
  std::vector<std::unique_ptr<Sums>> sums;  // in flight
  bool fenced = false;
};

struct Product {
  StartedProduct operands;  // of lane 0
  const uint32_t* a_registers[kLanes];
  Sums* sums[kLanes];
  int group;
  bool added;
};

struct Warp {
  std::vector<Product> products;
  int committed = 0;    // groups
  uint32_t fenced = 0;  // lanes that have passed on what they had written, since all of them last had
  // The shared arrays as the warp's products see them: what bulk copies brought, and what there was when its lanes had
  // passed on what they had written. A copy a warp, so that one that forgets to is found beside one that does not.
  std::unique_ptr<char[]> seen;
};

struct ThreadBarrier {  // of a warpgroup, or of all blocks of the cluster
  std::vector<unsigned> waiting;
  Site site{};
  char order[2];
  unsigned turn = 0;
};

struct BulkCopy {
  void* destination;
  std::vector<char> bytes;
};

struct PhaseBarrier {
  void* address;
  unsigned rank;  // of its block
  unsigned arrivals, pending;
  int64_t bytes = 0;    // expected and not arrived
  unsigned parity = 0;  // of the phase that is not complete
  std::vector<BulkCopy> copies;
  std::vector<unsigned> waiting;
  char order;
};

struct State {
  Lane lanes[kMostThreads];
  Warp warps[kMostWarps];
  ThreadBarrier warpgroups[kMostThreads / kWarpgroupThreads], cluster;
  std::vector<std::unique_ptr<PhaseBarrier>> barriers;
};
std::unique_ptr<State> state;  // of the running cluster; null until a thread needs it

State& the_state() {
  const IgnoreAccesses ours;
  if (state == nullptr) state = std::make_unique<State>();
  return *state;
}

// As every lane brings them; what is wrong comes back.
struct Start {
  float* sums;
  const StartedProduct* product;
  const char* error;
};
struct Wait {
  float* const* sums;
  int arrays, groups_left;
  const char* error;
};

// What the products of a warp see; as wiped as shared memory is at the start of a block.
char* seen_by(Warp& warp, const SharedMemory& shared) {
  if (warp.seen == nullptr) {
    warp.seen.reset(new char[shared.size()]);
    std::memset(warp.seen.get(), 0xff, shared.size());
  }
  return warp.seen.get();
}

bool same(const MatrixOperand& x, const MatrixOperand& y) {
  return x.first == y.first && x.k_bytes == y.k_bytes && x.row_bytes == y.row_bytes;
}

void read_rows(uint32_t (*words)[8], int rows, const MatrixOperand& from, int row_group, bool transposed) {
  for (int k = 0; k < 2; k++)
    for (int i = 0; i < rows; i++) {
      const char* core = from.first + k * from.k_bytes + (row_group + i / 8) * from.row_bytes;
      if (!transposed) {
        std::memcpy(words[i] + 4 * k, core + i % 8 * 16, 16);
        continue;
      }
      uint16_t elements[8];
      for (int e = 0; e < 8; e++) std::memcpy(elements + e, core + e * 16 + i % 8 * 2, 2);
      std::memcpy(words[i] + 4 * k, elements, 16);
    }
}

// Whether products of a warp see rows of an operand as they are.
bool sees(Warp& warp, int rows, const MatrixOperand& of, int row_group) {
  const char* seen = seen_by(warp, the_cluster.shared());
  for (int k = 0; k < 2; k++)
    for (int i = 0; i < rows; i += 8) {
      const char* core = of.first + k * of.k_bytes + (row_group + i / 8) * of.row_bytes;
      if (std::memcmp(core, seen + the_cluster.shared().place(core), 128) != 0) return false;
    }
  return true;
}

// The warp's 16 rows: fragments of sums are those of mma.m16n8k16, one for every 8 columns.
void add(Product& product, unsigned warp) {
  const StartedProduct& operands = product.operands;
  uint32_t a[16][8], b[8][8];
  if (operands.a_registers == nullptr) {
    read_rows(a, 16, operands.a, static_cast<int>(warp % 4) * 2, operands.a_transposed);
  } else {
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) a[lane / 4 + i % 2 * 8][lane % 4 + i / 2 * 4] = product.a_registers[lane][i];
  }
  for (int n = 0; n < operands.columns / 8; n++) {
    read_rows(b, 8, operands.b, n, operands.b_transposed);
    float d[16][8];
    const auto each = [&](auto&& f) {
      for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++)
          f(d[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2], product.sums[lane]->values[4 * n + r]);
    };
    each([&](float& of_tile, const float& of_lane) { of_tile = operands.adds ? of_lane : 0.0f; });
    multiply_elements(operands.element, a, b, d);
    each([](const float& of_tile, float& of_lane) { of_lane = of_tile; });
  }
  product.added = true;
}

// Null, or why a lane may not start a product.
const char* take_sums(Lane& lane, const Start& start, const StartedProduct& first, Sums*& taken) {
  const StartedProduct& product = *start.product;
  if (!same(product.a, first.a) || !same(product.b, first.b)) return "lanes disagree on the operands";
  if (product.a_registers != nullptr && !lane.fenced) return "no wgmma_fence since registers were the thread's";
  for (const auto& sums : lane.sums)
    if (sums->in_flight == start.sums) {
      taken = sums.get();
      return nullptr;
    }
  if (!lane.fenced) return "no wgmma_fence since registers were the thread's";
  lane.sums.push_back(std::make_unique<Sums>());
  taken = lane.sums.back().get();
  taken->in_flight = start.sums, taken->count = product.columns / 2;
  std::memcpy(taken->values, start.sums, taken->count * sizeof(float));
  std::memset(start.sums, 0xff, taken->count * sizeof(float));
  return nullptr;
}

void start(void** by_lane, uint32_t) {
  const IgnoreAccesses ours;
  Start** lanes = reinterpret_cast<Start**>(by_lane);
  const unsigned warp = the_cluster.running()->index / kLanes;
  Warp& of = the_state().warps[warp];
  const StartedProduct& first = *lanes[0]->product;
  Product product{first, {}, {}, of.committed, false};
  for (unsigned lane = 0; lane < kLanes; lane++) {
    product.a_registers[lane] = lanes[lane]->product->a_registers;
    lanes[lane]->error = take_sums(the_state().lanes[warp * kLanes + lane], *lanes[lane], first, product.sums[lane]);
    if (lanes[lane]->error != nullptr) return;
  }
  if (of.fenced == ~0u) {
    the_cluster.shared().copy_arrays(seen_by(of, the_cluster.shared()));
    of.fenced = 0;
  }
  const bool sees_a = first.a_registers != nullptr || sees(of, 16, first.a, static_cast<int>(warp % 4) * 2);
  if (!sees_a || !sees(of, first.columns, first.b, 0)) {
    lanes[0]->error = "an operand was written without fence_for_async_reads";
    return;
  }
  if (!the_cluster.reads_late()) add(product, warp);
  of.products.push_back(product);
}

// Gives a lane back the arrays that it waits for and no later group adds to. Null, or what is wrong.
const char* give_back(Lane& lane, unsigned index, const Wait& wait, const std::vector<Product>& later) {
  for (auto sums = lane.sums.begin(); sums != lane.sums.end();) {
    const auto uses = [&](const Product& product) { return product.sums[index] == sums->get(); };
    float* const* end = wait.sums + wait.arrays;
    if (std::find(wait.sums, end, (*sums)->in_flight) == end || std::any_of(later.begin(), later.end(), uses)) {
      ++sums;
      continue;
    }
    std::memcpy((*sums)->in_flight, (*sums)->values, (*sums)->count * sizeof(float));
    sums = lane.sums.erase(sums);
    lane.fenced = false;
  }
  return wait.groups_left == 0 && !lane.sums.empty() ? "waits for other sums" : nullptr;
}

void wait(void** by_lane, uint32_t) {
  const IgnoreAccesses ours;
  Wait** lanes = reinterpret_cast<Wait**>(by_lane);
  const unsigned warp = the_cluster.running()->index / kLanes;
  Warp& of = the_state().warps[warp];
  auto product = of.products.begin();
  for (; product != of.products.end() && product->group < of.committed - lanes[0]->groups_left; ++product)
    if (!product->added) add(*product, warp);
  of.products.erase(of.products.begin(), product);
  for (unsigned lane = 0; lane < kLanes; lane++)
    lanes[lane]->error = give_back(the_state().lanes[warp * kLanes + lane], lane, *lanes[lane], of.products);
}

PhaseBarrier& find_barrier(void* address, const char* operation, Site site) {
  for (const auto& barrier : the_state().barriers)
    if (barrier->address == address) return *barrier;
  fail(std::string(operation) + ": no barrier was initialised there", site);
}

// Ends the phase if nothing is missing.
void complete(PhaseBarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.parity ^= 1, barrier.pending = barrier.arrivals;
  the_cluster.wake_listed(barrier.waiting);
}

void deliver(PhaseBarrier& barrier) {
  const SharedMemory& shared = the_cluster.shared(barrier.rank);
  const unsigned warps = the_cluster.block_threads() / kLanes;
  for (const BulkCopy& copy : barrier.copies) {
    std::memcpy(copy.destination, copy.bytes.data(), copy.bytes.size());
    for (unsigned warp = barrier.rank * warps; warp < (barrier.rank + 1) * warps; warp++)
      std::memcpy(seen_by(the_state().warps[warp], shared) + shared.place(copy.destination), copy.bytes.data(),
                  copy.bytes.size());
    barrier.bytes -= static_cast<int64_t>(copy.bytes.size());
  }
  if (barrier.copies.empty()) return;
  barrier.copies.clear();
  complete(barrier);
}

// Waits until so many threads have come.
void meet(ThreadBarrier& group, unsigned threads, const char* operation, Site site) {
  if (group.waiting.empty())
    group.site = site;
  else if (group.site.line != site.line || std::strcmp(group.site.file, site.file) != 0)
    fail("barrier divergence: " + std::string(operation) + ", of other threads at " + describe(group.site), site);
  char* order = &group.order[group.turn];
  release(order);
  if (group.waiting.size() + 1 == threads) {
    group.turn ^= 1;
    the_cluster.wake_listed(group.waiting);
  } else {
    the_cluster.wait_in(group.waiting, operation, site);
  }
  acquire(order);
}

}  // namespace

void start_product(const char* name, float* sums, const StartedProduct& product, Site site) {
  static constexpr Operation kOperation{"wgmma", true, false};
  Start arguments{sums, &product, nullptr};
  collective(kOperation, ~0u, &arguments, start, site);
  if (arguments.error != nullptr) fail(std::string(name) + ": " + arguments.error, site);
}

void fence_products() { the_state().lanes[the_cluster.running()->index].fenced = true; }

void fence_for_asynchronous_reads() {
  const unsigned thread = the_cluster.running()->index;
  const IgnoreAccesses ours;
  the_state().warps[thread / kLanes].fenced |= 1u << thread % kLanes;
}

void commit_products(Site site) {
  static constexpr Operation kOperation{"wgmma_commit", true, false};
  collective(
      kOperation, ~0u, nullptr,
      [](void**, uint32_t) { the_state().warps[the_cluster.running()->index / kLanes].committed++; }, site);
}

const StartedProduct* ending_product(int groups_left, unsigned i) {
  const Warp& warp = the_state().warps[the_cluster.running()->index / kLanes];
  if (i >= warp.products.size() || warp.products[i].group >= warp.committed - groups_left) return nullptr;
  return &warp.products[i].operands;
}

void wait_for_products(int groups_left, float* const* sums, int arrays, Site site) {
  static constexpr Operation kOperation{"wgmma_wait", true, false};
  Wait arguments{sums, arrays, groups_left, nullptr};
  collective(kOperation, ~0u, &arguments, wait, site);
  if (arguments.error != nullptr) fail(std::string(kOperation.name) + ": " + arguments.error, site);
}

void warpgroup_barrier(Site site) {
  meet(the_state().warpgroups[the_cluster.running()->index / kWarpgroupThreads], kWarpgroupThreads, "warpgroup_sync",
       site);
}

unsigned cluster_rank() { return the_cluster.running()->rank; }
unsigned cluster_size() { return the_cluster.ranks(); }
void cluster_barrier(Site site) {
  meet(the_state().cluster, the_cluster.ranks() * the_cluster.block_threads(), "cluster_sync", site);
}
void* mapped(const void* p, unsigned rank, Site site) { return the_cluster.mapped(p, rank, site); }

void init_phase_barrier(void* address, unsigned arrivals, Site site) {
  for (const auto& barrier : the_state().barriers)
    if (barrier->address == address) fail("phase_barrier_init: the barrier is there already", site);
  const IgnoreAccesses ours;
  auto barrier = std::make_unique<PhaseBarrier>();
  barrier->address = address, barrier->rank = the_cluster.running()->rank;
  barrier->arrivals = barrier->pending = arrivals;
  the_state().barriers.push_back(std::move(barrier));
}

void expect_bytes(void* address, int bytes, Site site) {
  PhaseBarrier& barrier = find_barrier(address, "phase_barrier_expect", site);
  if (barrier.pending == 0) fail("phase_barrier_expect: more arrivals than the barrier waits for", site);
  const IgnoreAccesses ours;
  release(&barrier.order);
  barrier.bytes += bytes, barrier.pending--;
  complete(barrier);
}

void copy_bulk_later(void* destination, const void* bytes, int count, void* address, Site site) {
  PhaseBarrier& barrier = find_barrier(address, "copy_bulk", site);
  const IgnoreAccesses ours;
  release(&barrier.order);
  const char* from = static_cast<const char*>(bytes);
  barrier.copies.push_back({destination, std::vector<char>(from, from + count)});
  if (!barrier.waiting.empty()) deliver(barrier);
}

void wait_for_phase(void* address, unsigned parity, Site site) {
  PhaseBarrier& barrier = find_barrier(address, "phase_barrier_wait", site);
  if (barrier.parity == (parity & 1)) {
    const IgnoreAccesses ours;
    deliver(barrier);
  }
  while (barrier.parity == (parity & 1)) the_cluster.wait_in(barrier.waiting, "phase_barrier_wait", site);
  acquire(&barrier.order);
}

std::string end_asynchronous_work(bool finished) {
  if (state == nullptr) return "";
  const IgnoreAccesses ours;
  std::string error;
  for (const auto& barrier : state->barriers)
    if (!barrier->copies.empty()) error = "the block ended before its bulk copies arrived";
  for (const Warp& warp : state->warps)
    if (!warp.products.empty()) error = "the block ended before its products";
  state.reset();
  return finished ? error : "";
}

}  // namespace cips3d::emulation

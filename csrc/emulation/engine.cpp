#include "engine.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "cluster.h"
#include "sanitizers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cips3d::emulation {
namespace {

size_t most_shared = 227 << 10;  // a block of compute capability 9.0

uint64_t schedule_seed = 0;
const auto one_grid_at_a_time = std::make_unique<std::mutex>();  // on the heap: see forget_static_variables

void check_configuration(dim3 grid, dim3 block, unsigned cluster, size_t shared) {
  const auto check = [](bool right, const std::string& what) {
    if (!right) throw std::runtime_error("CUDA emulation: invalid launch configuration: " + what);
  };
  const auto describe = [](dim3 d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  const bool small = block.x <= kMostThreads && block.y <= kMostThreads && block.z <= 64;
  const uint64_t threads = small ? uint64_t{block.x} * block.y * block.z : 0;
  check(threads > 0 && threads <= kMostThreads, "a block of " + describe(block) + " threads");
  check(grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x < 1u << 31 && grid.y < 1u << 16 && grid.z < 1u << 16,
        "a grid of " + describe(grid) + " blocks");
  check(shared <= most_shared, std::to_string(shared) + " bytes of shared memory");
  // Warpgroups are all there is to clusters, here.
  const bool fits = cluster == 1 || (cluster > 1 && cluster <= kMostRanks && grid.x % cluster == 0 &&
                                     threads % kWarpgroupThreads == 0 && threads * cluster <= kMostThreads);
  check(fits, "clusters of " + std::to_string(cluster) + " blocks");
}

}  // namespace

std::string describe(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

void set_schedule(uint64_t seed) { schedule_seed = seed; }
uint64_t schedule() { return schedule_seed; }

void set_shared_limit(size_t bytes) { most_shared = bytes; }
size_t shared_limit() { return most_shared; }

void run_grid(dim3 grid, dim3 block, unsigned cluster, size_t shared, void (*body)(void*), void* context) {
  check_configuration(grid, block, cluster, shared);
  const std::lock_guard<std::mutex> lock(*one_grid_at_a_time);
  gridDim = grid, blockDim = block;
  the_cluster.start_grid(block, cluster, shared, body, context);
  // Clusters in the order a * i + b mod clusters, where a has no divisor in common with their number.
  const uint64_t clusters = uint64_t{grid.x} * grid.y * grid.z / cluster;
  uint64_t a = 1, b = 0;
  if (schedule_seed != 0) {
    Random random(schedule_seed);
    do a = random.below(clusters);
    while (std::gcd(a, clusters) != 1);
    b = random.below(clusters);
  }
  std::string error;
  for (uint64_t i = 0; i < clusters && error.empty(); i++)
    error =
        the_cluster.run(static_cast<uint64_t>((static_cast<unsigned __int128>(a) * i + b) % clusters), schedule_seed);
  the_cluster.end_grid();
  if (!error.empty()) throw std::runtime_error("CUDA emulation: " + error);
}

void* shared_array(size_t bytes, unsigned index) {
  std::string error;
  void* array = the_cluster.shared().array(bytes, index, &error);
  if (array == nullptr) fail(error);
  return array;
}

void check_shared(const void* p, size_t bytes, const char* operation, Site site, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0)
    fail(std::string(operation) + ": shared address not aligned to " + std::to_string(alignment) + " bytes", site);
  if (!the_cluster.shared().allows(p, bytes)) fail(std::string(operation) + ": shared memory out of bounds", site);
}

void fail(const std::string& message) { the_cluster.fail(message); }
void fail(const std::string& message, Site site) { fail(message + " at " + describe(site)); }

int barrier(const char* operation, Vote vote, bool predicate, Site site) {
  return the_cluster.barrier(operation, vote, predicate, site);
}

void fence() { the_cluster.fence(); }

unsigned lane_index() { return the_cluster.running()->index % kLanes; }

void collective(const Operation& operation, uint32_t mask, void* arguments, void (*compute)(void**, uint32_t),
                Site site) {
  the_cluster.collective(operation, mask, arguments, compute, site);
}

void copy_later(void* destination, const void* bytes) {
  const IgnoreAccesses ours;  // of the list; the source has been read by the caller
  Thread& thread = *the_cluster.running();
  thread.copies.emplace_back();
  Copy& copy = thread.copies.back();
  copy.destination = destination, copy.group = thread.committed;
  std::memcpy(copy.bytes, bytes, sizeof copy.bytes);
}

void commit_copies() { the_cluster.running()->committed++; }

void wait_for_copies(int groups_left) {
  Thread& thread = *the_cluster.running();
  auto copy = thread.copies.begin();
  for (; copy != thread.copies.end() && copy->group < thread.committed - groups_left; ++copy)
    std::memcpy(copy->destination, copy->bytes, sizeof copy->bytes);
  const IgnoreAccesses ours;  // of the list; the destinations above are the kernel's
  thread.copies.erase(thread.copies.begin(), copy);
}

}  // namespace cips3d::emulation

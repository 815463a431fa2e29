#include "warp.h"

namespace cips3d::emulation {
namespace {

template <class F>
void for_lanes(uint32_t mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
}

struct Shuffled {
  uint64_t value, result;
  int source;
  bool absent;
};

void shuffle_lanes(void** by_lane, uint32_t mask) {
  Shuffled** lanes = reinterpret_cast<Shuffled**>(by_lane);
  for_lanes(mask, [&](int i) {
    Shuffled& lane = *lanes[i];
    lane.absent = !(mask >> lane.source & 1);
    if (!lane.absent) lane.result = lanes[lane.source]->value;
  });
}

struct Reduced {
  uint32_t value;
  uint32_t (*combine)(uint32_t, uint32_t);
};

void reduce_lanes(void** by_lane, uint32_t mask) {
  Reduced** lanes = reinterpret_cast<Reduced**>(by_lane);
  Reduced total = *lanes[__builtin_ctz(mask)];
  for_lanes(mask & (mask - 1), [&](int i) { total.value = total.combine(total.value, lanes[i]->value); });
  for_lanes(mask, [&](int i) { lanes[i]->value = total.value; });
}

}  // namespace

uint64_t shuffle(const Operation& operation, uint32_t mask, uint64_t value, int source, Site site) {
  Shuffled arguments{value, value, source, false};
  collective(operation, mask, &arguments, shuffle_lanes, site);
  if (arguments.absent) fail(std::string(operation.name) + ": reads a lane that takes no part", site);
  return arguments.result;
}

uint32_t ballot(const Operation& operation, uint32_t mask, bool predicate, Site site) {
  return reduce(
      operation, mask, predicate ? 1u << lane_index() : 0u, [](uint32_t a, uint32_t b) { return a | b; }, site);
}

uint32_t reduce(const Operation& operation, uint32_t mask, uint32_t value, uint32_t (*combine)(uint32_t, uint32_t),
                Site site) {
  Reduced arguments{value, combine};
  collective(operation, mask, &arguments, reduce_lanes, site);
  return arguments.value;
}

}  // namespace cips3d::emulation

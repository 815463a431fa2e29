// Importance sampling: the distribution that the coarse weights of a ray define, inverted at its draws, and all depths
// merged. A group of lanes has a ray; what its lanes exchange is in shared memory, and nothing but the result leaves
// it.
#include "ray_samples.h"
#include "rays.h"

namespace cips3d {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kLargestRay = 12000;  // words: what fits into the 48 KB of shared memory that every device has

__global__ void __launch_bounds__(kThreads)
    importance_kernel(const float* __restrict__ depths,   // [rays, S] ascending
                      const float* __restrict__ weights,  // [rays, S]
                      const float* __restrict__ u,        // [rays, F] in [0, 1)
                      float* __restrict__ fine,           // [rays, F] ascending
                      float* __restrict__ merged,         // [rays, S + F] ascending
                      int64_t* __restrict__ order,        // [rays, S + F] in cat(coarse, fine)
                      int64_t rays, int coarse_count, int fine_count, int group) {
  const int S = coarse_count, F = fine_count, rays_a_block = blockDim.x / group;
  const int slot = threadIdx.x / group, index = threadIdx.x % group;
  const int64_t ray = static_cast<int64_t>(blockIdx.x) * rays_a_block + slot;
  const bool has_ray = ray < rays;  // lanes without a ray go on, for the shuffles

  SharedArrays arrays;
  float* cdf = arrays.take<float>(rays_a_block * S) + slot * S;  // [S - 1]
  const int keys_a_ray = padded_keys(S) + padded_keys(F);
  unsigned* keys = arrays.take<unsigned>(rays_a_block * keys_a_ray) + slot * keys_a_ray;  // coarse
  unsigned* drawn = keys + padded_keys(S);                                                // fine, as drawn
  unsigned* sorted = arrays.take<unsigned>(rays_a_block * (S + F)) + slot * (S + F);
  int* position = arrays.take<int>(rays_a_block * (S + F)) + slot * (S + F);

  // The distribution on the S - 1 midpoints, from the S - 2 inner weights.
  const float* inner = weights + ray * S + 1;
  float total = 0.0f;
  for (int i = index; i < S; i += group) {
    keys[i] = has_ray ? sortable(depths[ray * S + i]) : 0u;
    if (has_ray && i < S - 2) total += (inner[i] + kWeightFloor) + kWeightFloor;
  }
  pad_keys(keys, S, index);
  pad_keys(drawn, F, index);
  total = sum_lanes(total, 1, group);
  float reached = 0.0f;
  for (int base = 0; base < S - 2; base += group) {
    const int i = base + index;
    const float density = has_ray && i < S - 2 ? ((inner[i] + kWeightFloor) + kWeightFloor) / total : 0.0f;
    const float here = reached + sum_up_to(density, index, group);
    if (i < S - 2) cdf[i + 1] = here;
    reached = __shfl_sync(~0u, here, group - 1, group);
  }
  if (index == 0) cdf[0] = 0.0f;
  __syncwarp();

  for (int k = index; k < F; k += group) {
    const float draw = has_ray ? u[ray * F + k] : 0.0f;
    int upper = lower_bound(cdf, S - 1, draw);
    const int lower = max(upper - 1, 0);
    upper = min(upper, S - 2);
    const float step = cdf[upper] - cdf[lower];
    const float share = (draw - cdf[lower]) / (step < kCdfFloor ? 1.0f : step);
    const float a = 0.5f * (from_sortable(keys[lower]) + from_sortable(keys[lower + 1]));
    const float b = 0.5f * (from_sortable(keys[upper]) + from_sortable(keys[upper + 1]));
    drawn[k] = sortable(between(a, b, share));
  }
  __syncwarp();

  // Places in the merged order: of equal depths coarse ones come first, in the order of their rows.
  bool ascending = true;
  for (int i = index; i + 1 < S; i += group) ascending &= keys[i] <= keys[i + 1];
  ascending = __all_sync(~0u, ascending);
  int sum = 0;
  for (int k = index; k < F; k += group) sum += count_smaller(drawn, F, drawn[k]);
  const bool distinct = all_distinct(sum, F, 32 / group);
  for (int i = index; i < S; i += group) {
    const int place = (ascending ? i : count_before(keys, S, keys[i], i)) + count_smaller(drawn, F, keys[i]);
    sorted[place] = keys[i];
    position[place] = i;
  }
  for (int k = index; k < F; k += group) {
    const int among_fine = distinct ? count_smaller(drawn, F, drawn[k]) : count_before(drawn, F, drawn[k], k);
    const int place = count_smaller(keys, S, drawn[k] + 1) + among_fine;
    sorted[place] = drawn[k];
    position[place] = S + among_fine;
  }
  __syncwarp();

  if (!has_ray) return;
  for (int i = index; i < S + F; i += group) {
    const float depth = from_sortable(sorted[i]);
    merged[ray * (S + F) + i] = depth;
    order[ray * (S + F) + i] = position[i];
    if (position[i] >= S) fine[ray * F + position[i] - S] = depth;
  }
}

}  // namespace

void importance(cudaStream_t stream, Pointer depths, Pointer weights, Pointer u, Pointer fine, Pointer merged,
                Pointer order, int64_t rays, int64_t coarse_count, int64_t fine_count) {
  const int64_t all = coarse_count + fine_count;
  const int64_t keys = padded_keys(static_cast<int>(coarse_count)) + padded_keys(static_cast<int>(fine_count));
  if (coarse_count + 3 * all > kLargestRay) throw std::invalid_argument("4 S + 3 F must not exceed 12000");
  const int group = power_of_two_from(std::max(coarse_count, fine_count), 32);
  const auto shared = [&](int64_t rays_a_block) {
    return shared_bytes<float>(rays_a_block * coarse_count) + shared_bytes<unsigned>(rays_a_block * keys) +
           2 * shared_bytes<unsigned>(rays_a_block * all);
  };
  int threads = kThreads;
  while (threads > 32 && shared(threads / group) > 48 * 1024) threads /= 2;
  launch(importance_kernel, blocks_for(rays, threads / group), threads, shared(threads / group), stream,
         input<float>(depths), input<float>(weights), input<float>(u), output<float>(fine), output<float>(merged),
         output<int64_t>(order), rays, coarse_count, fine_count, group);
}

}  // namespace cips3d

// How the work of ray_march.h is cut into blocks, and launched.
#pragma once
#include "ray_march.h"

namespace cips3d {

inline RaySettings ray_settings(int64_t images, int64_t rays, int coarse, int fine, double near, double far,
                                bool softplus, bool last_back) {
  if (images * rays > int64_t{1} << 30) throw std::invalid_argument("more than 2^30 rays");
  return {static_cast<int>(images),
          static_cast<int>(rays),
          coarse,
          fine,
          0,
          stratified_range(near, far, coarse),
          softplus,
          last_back};
}

template <class Field>
__global__ void __launch_bounds__(Field::kMostThreads, 1)
    render_rays_kernel(const RayTensors tensors, const typename Field::Layers layers, const RaySettings s) {
  if constexpr (Field::kFits)
    march<Field>(tensors, layers, s);
  else
    __trap();
}

// How the work is cut: rays and warps of a team. A pass of `rays * samples` samples should fill its warps, as should
// the work on rays, and where two blocks fit on a multiprocessor, one computes while the other sorts: that is worth
// passes that are less full.
constexpr double kWorthTwoBlocks = 0.1;
constexpr double kWorthMoreWarps = 1.5;  // how much less full: each waits for itself where there are fewer
struct Plan {
  int rays = 0, warps = 0, blocks = 0;  // blocks of a multiprocessor
  size_t shared = 0;                    // bytes of a block
  double filled = 0.0, worth = 0.0;     // share of the samples in what passes evaluate, and could with rounds on rays
};

template <class Field>
Plan plan_blocks(const typename Field::Layers& layers, const RaySettings& s, const DeviceLimits& device,
                 int registers) {
  // Each of a multiprocessor's four schedulers has registers of its own for whole warps.
  constexpr int kSchedulers = 4, kRegisters = 16384, kTeams = Field::Team::kTeams;
  const int resident_warps = kSchedulers * (kRegisters / (32 * registers));
  const int samples = s.coarse + s.fine;
  Plan best;
  for (int blocks = 2; blocks >= 1; blocks--)
    // As many on every scheduler: with five, one of them would take as long as all with eight.
    for (int warps = Field::kMostWarps; warps >= Field::kFewestWarps; warps -= kSchedulers) {
      if (blocks * warps * kTeams > resident_warps) continue;
      for (int rays = 1; rays <= 64; rays++) {
        const size_t of_rays = RayScratch<typename Field::Color>::bytes(rays, samples, warps, Field::color_row(layers));
        const size_t shared = Field::bytes(layers) + kTeams * of_rays;
        if ((shared + kSharedOverhead) * blocks > device.shared_multiprocessor || shared > device.shared_block) break;
        double used = 0, offered = 0;
        for (const int count : {s.coarse, s.fine}) {
          used += rays * count;
          offered += ceil_div(rays * count, Field::step(warps)) * Field::step(warps);
        }
        const int rounds = ceil_div(rays, warps * (samples <= kFewSamples ? kRaysOfFew : 1));
        const double worth = used / (offered + rounds * warps * Field::kRound);
        const double better = blocks < best.blocks ? kWorthTwoBlocks : 0.02;
        const double most = blocks * warps < best.blocks * best.warps ? kWorthMoreWarps * best.worth : best.worth;
        if (worth > most + better) best = {rays, warps, blocks, shared, used / offered, worth};
      }
    }
  return best;  // without rays where not one of them fits
}

template <class Field>
Plan plan_blocks(const typename Field::Layers& layers, const RaySettings& s) {
  return plan_blocks<Field>(layers, s, device_limits(),
                            registers_a_thread(render_rays_kernel<Field>, Field::kMostThreads));
}

template <class Field>
void launch_rays(const RayTensors& tensors, const typename Field::Layers& layers, RaySettings s, const Plan& plan,
                 cudaStream_t stream) {
  if (plan.rays == 0) throw std::invalid_argument("one ray's samples do not fit into shared memory");
  s.block_rays = plan.rays;
  s.coarse_divisor = Divisor::of(s.coarse), s.fine_divisor = Divisor::of(s.fine);
  constexpr int kTeams = Field::Team::kTeams;
  s.scratch_bytes = static_cast<int>((plan.shared - Field::bytes(layers)) / kTeams);
  s.tiles_an_image = ceil_div(s.rays, plan.rays);
  s.tiles = s.images * s.tiles_an_image;
  const int64_t resident = static_cast<int64_t>(device_limits().multiprocessors) * plan.blocks;
  const int64_t blocks = std::max<int64_t>(std::min<int64_t>(ceil_div(s.tiles, kTeams), resident), 1);
  s.tiles_a_block = static_cast<int>(ceil_div<int64_t>(s.tiles, blocks));
  launch(render_rays_kernel<Field>, dim3(blocks_for(s.tiles, std::max(s.tiles_a_block, 1))),
         dim3(plan.warps * 32 * kTeams), plan.shared, stream, tensors, layers, s);
}

}  // namespace cips3d

// Rays through a field on the chip: coarse samples, importance samples, their merge and the compositing, for any field
// that a block of threads can evaluate.
//
// A team of threads, which is a block or one of the warpgroups of a block, works on a few rays of one image at a time.
// Two phases alternate: the field at all samples of a pass, and the work on rays, where a warp has a few rays and its
// lanes the samples. The teams of a block share the image's weights.
//
// A field is a type with
//   Layers                           what the host gives; a parameter of the kernel
//   Team                             who works on rays
//   Color                            the type of composited values in shared memory
//   static int color_row(layers)     the distance of two samples' values there
//   kFewestWarps, kMostWarps         of a team, multiples of 4; kMostThreads = 32 * kMostWarps * Team::kTeams
//   kRound                           what a round of a warp's work on rays takes, in samples that it evaluates
//   meanwhile kFits                            whether the architecture that code is compiled for has what it needs
//   static int step(warps)           samples that a team evaluates at a time
//   static size_t bytes(layers)      of shared memory, but for what rays need
//   static int channels(layers)      composited values
//   Field(SharedArrays&, layers)
//   void begin(image)                before the samples of another image, by all threads of the block; barriers of the
//                                    block around it
//   void evaluate(SamplePass)        by all threads of the team, between barriers of the team
#pragma once
#include "ray_lanes.h"

namespace cips3d {

// Rows of channels end 16 bytes later: the 8 rows of a warp's store lie in different banks.
template <class Color>
constexpr int kPadColors = static_cast<int>(16 / sizeof(Color));

// A block that works as a whole.
struct BlockTeam {
  static constexpr int kTeams = 1;
  __device__ __forceinline__ static int index() { return 0; }
  __device__ __forceinline__ static int thread() { return threadIdx.x; }
  __device__ __forceinline__ static int threads() { return blockDim.x; }
  __device__ __forceinline__ static void sync() { __syncthreads(); }
};

struct RayTensors {
  const float* origins;       // [B, R, 3]
  const float* directions;    // [B, R, 3]
  const float* stratified;    // [B, R, S] draws in [0, 1)
  const float* importance;    // [B, R, F] draws in [0, 1), null with F = 0
  const float* coarse_noise;  // [B, R, S] added to the coarse densities, or null
  const float* merged_noise;  // [B, R, S + F] added to the merged densities, or null
  float* colors;              // [B, R, C] composited colour activations
  float* weight_sum;          // [B, R] without what an opaque back takes
  float* depth;               // [B, R]
  float* weights;             // [B, R, S + F], front to back
  float* depths;              // [B, R, S + F], ascending
  float* transmittance;       // [B, R, S + F] in front of each sample, for the backward; or null
};

// n / value where n * value is below 2^31, without the twenty instructions of a division.
struct Divisor {
  int value;
  unsigned inverse;  // 2^31 / value, rounded up

  static Divisor of(int value) {
    return {value, (1u << 31) / std::max(value, 1) + ((1u << 31) % std::max(value, 1) > 0)};
  }
  __device__ __forceinline__ int divide(int n) const { return static_cast<int>(__umulhi(2u * n, inverse)); }
};

struct RaySettings {
  int64_t images, rays;
  int coarse, fine, block_rays;
  float near, far;
  bool softplus, last_back;
  Divisor coarse_divisor = {}, fine_divisor = {};  // launch_rays gives them
};

// Samples of the rays that a team works on; sample s of ray r is at r * samples + s, coarse ones first.
template <class Color>
struct RayScratch {
  float* ray;      // [block_rays, 6] origin, direction
  float* depths;   // [block_rays, samples] fine ones ascending
  float* density;  // [block_rays, samples] raw
  int* order;      // [block_rays, samples] order[i]: which sample is the ith from the front
  float* cdf;      // [warps, kWarpSamples] or a ray's weights
  unsigned* keys;  // [warps, kWarpKeys] depths to be put in order, as sortable numbers
  Color* colors;   // [block_rays * samples, color row]

  static size_t bytes(int rays, int samples, int warps, int color_row) {
    const size_t all = static_cast<size_t>(rays) * samples;
    return shared_bytes<float>(rays * 6) + 2 * shared_bytes<float>(all) + shared_bytes<int>(all) +
           shared_bytes<float>(warps * kWarpSamples) + shared_bytes<unsigned>(warps * kWarpKeys) +
           shared_bytes<Color>(all * color_row);
  }
  __device__ __forceinline__ RayScratch(SharedArrays& shared, int rays, int samples, int warps, int color_row)
      : ray(shared.take<float>(rays * 6)),
        depths(shared.take<float>(rays * samples)),
        density(shared.take<float>(rays * samples)),
        order(shared.take<int>(rays * samples)),
        cdf(shared.take<float>(warps * kWarpSamples)),
        keys(shared.take<unsigned>(warps * kWarpKeys)),
        colors(shared.take<Color>(static_cast<size_t>(rays) * samples * color_row)) {}
};

// Where a sample is, and where the team keeps what belongs to it.
struct PassSample {
  int at, ray;
  float3 point;
};

// Samples [first, first + count) of every ray of the team, as rows of an operand.
template <class Color>
struct SamplePass {
  const RayScratch<Color>& scratch;
  int rays, first;
  Divisor count;
  int samples;

  __device__ __forceinline__ int size() const { return rays * count.value; }
  // Of `row`; rows past the end repeat the last one, and nothing may be stored of them.
  __device__ __forceinline__ PassSample operator[](int row) const {
    const int there = min(row, size() - 1), ray = count.divide(there);
    const int at = ray * samples + first + there - ray * count.value;
    const float* o = scratch.ray + 6 * ray;
    const float t = scratch.depths[at];
    return {at, ray, make_float3(fmaf(t, o[3], o[0]), fmaf(t, o[4], o[1]), fmaf(t, o[5], o[2]))};
  }
};

// torch.linspace(near, far, count)[i], which counts from both ends.
__device__ __forceinline__ float linspace(float near, float far, int count, int i) {
  const float step = (far - near) / (count - 1);
  return i < count / 2 ? near + step * i : far - step * (count - 1 - i);
}

__device__ __forceinline__ float stratified_depth(const RaySettings& s, int i, float u) {
  if (s.coarse == 1) return s.near + (s.far - s.near) * u;
  const float spacing = linspace(s.near, s.far, s.coarse, 1) - s.near;
  return linspace(s.near, s.far, s.coarse, i) + (u - 0.5f) * spacing;
}

// Coarse weights of rays, and from them their fine depths: of `first` and those behind it, kRays times as many as a
// warp has groups of lanes.
template <int kLanes, int kRays, class Color>
__device__ __forceinline__ void place_fine_samples(const RayTensors& tensors, const RaySettings& s,
                                                   const RayScratch<Color>& scratch, int first, int rays,
                                                   int64_t global, int thread) {
  constexpr int kSlots = kLanes == 32 ? kWarpSamples / 32 : 1, kGroups = 32 / kLanes, kAll = kGroups * kRays;
  const int samples = s.coarse + s.fine, lane = thread % kLanes, warp = thread / 32;
  bool there[kRays];
  float density[kRays][kSlots], depth[kRays][kSlots], next[kRays][kSlots], draw[kSlots][kRays];
  float *depths[kRays], *cdf[kRays];
  unsigned* keys[kRays];
#pragma unroll
  for (int k = 0; k < kRays; k++) {
    const int of_warp = kGroups * k + thread % 32 / kLanes, mine = first + of_warp;
    there[k] = mine < rays;
    const int ray = there[k] ? mine : first;  // not another warp's
    depths[k] = scratch.depths + ray * samples;
    cdf[k] = scratch.cdf + warp * kWarpSamples + of_warp * part_of_warp(kWarpSamples, kAll);
    keys[k] = scratch.keys + warp * kWarpKeys + of_warp * part_of_warp(kWarpKeys, kAll);
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      const int i = min(kLanes * slot + lane, s.coarse - 1), j = min(kLanes * slot + lane, s.fine - 1);
      depth[k][slot] = depths[k][i];
      next[k][slot] = depths[k][min(i + 1, s.coarse - 1)];
      density[k][slot] = scratch.density[ray * samples + i];
      if (tensors.coarse_noise != nullptr) density[k][slot] += tensors.coarse_noise[(global + ray) * s.coarse + i];
      draw[slot][k] = tensors.importance[(global + ray) * s.fine + j];
    }
  }
  const auto c = composite_lanes<kLanes>(density, depth, next, s.coarse, s.softplus, lane);
  float weight[kRays][kSlots];
#pragma unroll
  for (int k = 0; k < kRays; k++)
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) weight[k][slot] = c.weight(k, slot);
  resample<kLanes>(depths, weight, draw, cdf, keys, s.coarse, s.fine, lane, there);
}

// The final weights of kRays rays from `first` on, and everything that is written of them.
template <int kRays, class Color>
__device__ __forceinline__ void composite_rays(const RayTensors& tensors, const RaySettings& s,
                                               const RayScratch<Color>& scratch, int first, int rays, int64_t global,
                                               int channels, int color_row, int thread) {
  constexpr int kSlots = kRays > 1 ? 1 : kWarpSamples / 32;
  const int samples = s.coarse + s.fine, lane = thread % 32, warp = thread / 32;
  bool there[kRays];
  int64_t index[kRays];  // of the ray in [B, R]
  const float* depths[kRays];
  const Color* colors[kRays];
  int* order[kRays];
  unsigned* keys[kRays];
  float density[kRays][kSlots], depth[kRays][kSlots], next[kRays][kSlots];
  float *weights[kRays], *out[kRays];
  int sample[kRays][kSlots];
#pragma unroll
  for (int k = 0; k < kRays; k++) {
    there[k] = first + k < rays;
    const int ray = there[k] ? first + k : first;  // not another warp's
    index[k] = global + ray;
    depths[k] = scratch.depths + ray * samples;
    colors[k] = scratch.colors + ray * samples * color_row;
    order[k] = scratch.order + ray * samples;
    keys[k] = scratch.keys + warp * kWarpKeys + k * part_of_warp(kWarpKeys, kRays);
    weights[k] = scratch.cdf + warp * kWarpSamples + k * part_of_warp(kWarpSamples, kRays);
    out[k] = tensors.colors + index[k] * channels;
  }
  merge<kRays, kSlots>(depths, order, keys, s.coarse, s.fine, lane, there);
  const float* noise = s.fine > 0 ? tensors.merged_noise : tensors.coarse_noise;
#pragma unroll
  for (int k = 0; k < kRays; k++)
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      if (32 * slot >= samples) continue;
      const int i = min(32 * slot + lane, samples - 1);
      sample[k][slot] = order[k][i];
      depth[k][slot] = depths[k][sample[k][slot]];
      next[k][slot] = depths[k][order[k][min(i + 1, samples - 1)]];
      density[k][slot] = scratch.density[depths[k] - scratch.depths + sample[k][slot]];
      if (noise != nullptr) density[k][slot] += noise[index[k] * samples + i];
    }
  const auto c = composite_lanes<32>(density, depth, next, samples, s.softplus, lane);
  float weight[kRays][kSlots], sum[kRays], depth_sum[kRays];
#pragma unroll
  for (int k = 0; k < kRays; k++) {
    sum[k] = depth_sum[k] = 0.0f;
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      weight[k][slot] = c.weight(k, slot);
      sum[k] += weight[k][slot];
    }
  }
  sum_lanes(sum, 1, 32);
#pragma unroll
  for (int k = 0; k < kRays; k++)
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      const int i = 32 * slot + lane;
      if (32 * slot >= samples) continue;
      if (s.last_back && i == samples - 1) weight[k][slot] += 1.0f - sum[k];
      depth_sum[k] += weight[k][slot] * depth[k][slot];
      if (i >= samples || !there[k]) continue;
      tensors.weights[index[k] * samples + i] = weight[k][slot];
      tensors.depths[index[k] * samples + i] = depth[k][slot];
      if (tensors.transmittance != nullptr) tensors.transmittance[index[k] * samples + i] = c.transmittance[k][slot];
    }
  sum_lanes(depth_sum, 1, 32);
#pragma unroll
  for (int k = 0; k < kRays; k++)
    if (lane == 0 && there[k]) {
      tensors.depth[index[k]] = depth_sum[k];
      tensors.weight_sum[index[k]] = sum[k];
    }
  composite_colors(colors, scratch.colors + color_row - kPadColors<Color>, weight, sample, weights, samples, channels,
                   color_row, out, lane, there);
}

// Has `count` floats from `first` on brought near, by all threads of a team; of null there is nothing to bring.
template <class Team>
__device__ __forceinline__ void prefetch_floats(const float* from, int64_t first, int count) {
  constexpr int kLine = kCacheLine / sizeof(float);
  if (from == nullptr || count == 0) return;
  for (int i = Team::thread() * kLine; i < count + kLine - 1; i += Team::threads() * kLine)
    prefetch_line(from + first + min(i, count - 1));
}

// The thread's index, with nothing computed from it ahead: what the work on rays needs of it would otherwise take
// registers while the field is evaluated.
template <class Team>
__device__ __forceinline__ int thread_here() {
  int thread = Team::thread();
  compute_here(thread);
  return thread;
}

// The warp's index, as a number that the compiler knows to be the same in all lanes: what depends on it is then no
// reason to look before every shuffle whether they have parted.
__device__ __forceinline__ int warp_of(int thread) { return __shfl_sync(~0u, thread / 32, 0); }

// A team's rays.
template <class Field>
__device__ __forceinline__ RayScratch<typename Field::Color> ray_scratch(SharedArrays& shared,
                                                                         const typename Field::Layers& layers,
                                                                         const RaySettings& s) {
  return {shared, s.block_rays, s.coarse + s.fine, Field::Team::threads() / 32, Field::color_row(layers)};
}

// The beginning of a tile: the rays [global, global + rays) of [B, R] and their coarse depths. The tiles of a team lie
// `stride` rays apart.
template <class Team, class Color>
__device__ __forceinline__ void place_rays(const RayTensors& tensors, const RaySettings& s,
                                           const RayScratch<Color>& scratch, int64_t global, int rays, int stride) {
  const int samples = s.coarse + s.fine;
  for (int i = Team::thread(); i < 3 * rays; i += Team::threads()) {
    scratch.ray[i / 3 * 6 + i % 3] = tensors.origins[global * 3 + i];
    scratch.ray[i / 3 * 6 + 3 + i % 3] = tensors.directions[global * 3 + i];
  }
  // What the work on rays reads would be waited for once a ray, and what a tile begins with, by all warps.
  prefetch_floats<Team>(tensors.importance, global * s.fine, rays * s.fine);
  prefetch_floats<Team>(tensors.coarse_noise, global * s.coarse, rays * s.coarse);
  prefetch_floats<Team>(tensors.merged_noise, global * samples, rays * samples);
  const int64_t ahead = global + stride, behind = s.images * s.rays - ahead;
  if (behind > 0) {
    const int rays_ahead = static_cast<int>(min(static_cast<int64_t>(s.block_rays), behind));
    prefetch_floats<Team>(tensors.origins, ahead * 3, rays_ahead * 3);
    prefetch_floats<Team>(tensors.directions, ahead * 3, rays_ahead * 3);
    prefetch_floats<Team>(tensors.stratified, ahead * s.coarse, rays_ahead * s.coarse);
  }
  for (int i = Team::thread(); i < rays * s.coarse; i += Team::threads()) {
    const int ray = s.coarse_divisor.divide(i), sample = i - ray * s.coarse;
    scratch.depths[ray * samples + sample] = stratified_depth(s, sample, tensors.stratified[global * s.coarse + i]);
  }
}

// A tile, by a team, between its barriers. `shared` is where the team's rays are.
template <class Field>
__device__ __forceinline__ void march_tile(Field& field, SharedArrays shared, const RayTensors& tensors,
                                           const typename Field::Layers& layers, const RaySettings& s, int64_t global,
                                           int rays, int stride) {
  using Color = typename Field::Color;
  using Team = typename Field::Team;
  const int samples = s.coarse + s.fine, warps = Team::threads() / 32;
  const auto scratch = [&] {  // computed anew, since the field needs the registers
    shared.renew();
    SharedArrays from = shared;
    return ray_scratch<Field>(from, layers, s);
  };
  const auto evaluate = [&](int first, Divisor count) {
    const RayScratch<Color> here = scratch();
    field.evaluate(SamplePass<Color>{here, rays, first, count, samples});
    Team::sync();
  };
  place_rays<Team>(tensors, s, scratch(), global, rays, stride);
  Team::sync();
  evaluate(0, s.coarse_divisor);
  if (s.fine > 0) {
    const bool few = s.coarse <= 16 && s.fine <= 16;  // then half a warp has two rays
    const int thread = thread_here<Team>(), at_a_time = few ? 4 : 1;
    const RayScratch<Color> here = scratch();
    for (int first = at_a_time * warp_of(thread); first < rays; first += at_a_time * warps)
      few ? place_fine_samples<16, 2>(tensors, s, here, first, rays, global, thread)
          : place_fine_samples<32, 1>(tensors, s, here, first, rays, global, thread);
    Team::sync();
    evaluate(s.coarse, s.fine_divisor);
  }
  const bool few = samples <= kFewSamples;
  const int thread = thread_here<Team>(), at_a_time = few ? kRaysOfFew : 1;
  const RayScratch<Color> here = scratch();
  for (int first = at_a_time * warp_of(thread); first < rays; first += at_a_time * warps)
    few ? composite_rays<kRaysOfFew>(tensors, s, here, first, rays, global, Field::channels(layers),
                                     Field::color_row(layers), thread)
        : composite_rays<1>(tensors, s, here, first, rays, global, Field::channels(layers), Field::color_row(layers),
                            thread);
  Team::sync();  // the tile has been read
}

// The work of a block.
template <class Field>
__device__ __forceinline__ void march(const RayTensors& tensors, const typename Field::Layers& layers,
                                      const RaySettings& s) {
  using Color = typename Field::Color;
  using Team = typename Field::Team;
  const int team = Team::index();
  SharedArrays shared;
  Field field(shared, layers);
  for (int before = 0; before < team; before++) ray_scratch<Field>(shared, layers, s);
  SharedArrays from = shared;
  const RayScratch<Color> scratch = ray_scratch<Field>(from, layers, s);
  for (int i = Team::thread(); i < kPadColors<Color>; i += Team::threads())  // what stands for samples not there
    scratch.colors[Field::color_row(layers) - 1 - i] = from_float<Color>(0.0f);

  // Consecutive parts of the work, so that a block changes its image as rarely as possible.
  const int tiles_an_image = static_cast<int>(ceil_div<int64_t>(s.rays, s.block_rays));
  const int64_t tiles = s.images * tiles_an_image;
  const int end = static_cast<int>(tiles * (blockIdx.x + 1) / gridDim.x);
  for (int first = static_cast<int>(tiles * blockIdx.x / gridDim.x); first < end;) {
    const int image = first / tiles_an_image, behind = min(end, (image + 1) * tiles_an_image);
    __syncthreads();  // nobody needs the image before
    field.begin(image);
    __syncthreads();
    for (int tile = first + team; tile < behind; tile += Team::kTeams) {
      const int64_t begin = static_cast<int64_t>(tile - image * tiles_an_image) * s.block_rays;
      const int rays = static_cast<int>(min(static_cast<int64_t>(s.block_rays), s.rays - begin));
      march_tile<Field>(field, shared, tensors, layers, s, image * s.rays + begin, rays, Team::kTeams * s.block_rays);
    }
    first = behind;
  }
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
        if (worth > best.worth + better) best = {rays, warps, blocks, shared, used / offered, worth};
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
  if (s.images * s.rays > std::numeric_limits<int>::max() / 2) throw std::invalid_argument("more than 2^30 rays");
  const int64_t tiles = s.images * ceil_div<int64_t>(s.rays, plan.rays);
  const int64_t resident = static_cast<int64_t>(device_limits().multiprocessors) * plan.blocks;
  launch(render_rays_kernel<Field>, dim3(blocks_for(std::min(ceil_div<int64_t>(tiles, kTeams), resident), 1)),
         dim3(plan.warps * 32 * kTeams), plan.shared, stream, tensors, layers, s);
}

}  // namespace cips3d

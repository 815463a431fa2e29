// Rays through a field on the chip: coarse samples, importance samples, their merge and the compositing, for any field
// that a team of threads can evaluate.
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
//   kRound                           samples that a warp could evaluate during a round of its work on rays
//   kFits                            whether the architecture that code is compiled for has what it needs
//   static int step(warps)           samples that a team evaluates at a time
//   static size_t bytes(layers)      of shared memory, but for what rays need
//   static int channels(layers)      composited values
//   Field(SharedArrays&, layers)
//   void begin(image)                before the samples of another image, by all threads of the block; barriers of the
//                                    block around it
//   void evaluate(SamplePass)        by all threads of the team, between barriers of the team
#pragma once
#include "ray_lanes.h"
#include "stratified_range.h"

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
  int images, rays;  // the product at most 2^30
  int coarse, fine, block_rays;
  StratifiedRange range;  // of the coarse samples
  bool softplus, last_back;
  // launch_rays gives these:
  Divisor coarse_divisor = {}, fine_divisor = {};
  int tiles = 0, tiles_an_image = 0, tiles_a_block = 0;
  int scratch_bytes = 0;  // of a team
};

// Samples of the rays that a team works on; sample s of ray r is at r * samples + s, coarse ones first.
template <class Color>
struct RayScratch {
  float* cdf;      // [warps, kWarpSamples] or a ray's weights
  unsigned* keys;  // [warps, kWarpKeys] depths to be put in order, as sortable numbers
  float* ray;      // [block_rays, 6] origin, direction
  float* depths;   // [block_rays, samples] fine ones ascending
  float* density;  // [block_rays, samples] raw
  int* order;      // [block_rays, samples] order[i]: which sample is the ith from the front
  Color* colors;   // [block_rays * samples, color row]

  static size_t bytes(int rays, int samples, int warps, int color_row) {
    const size_t all = static_cast<size_t>(rays) * samples;
    return shared_bytes<float>(rays * 6) + 2 * shared_bytes<float>(all) + shared_bytes<int>(all) +
           shared_bytes<float>(warps * kWarpSamples) + shared_bytes<unsigned>(warps * kWarpKeys) +
           shared_bytes<Color>(all * color_row);
  }
  __device__ __forceinline__ RayScratch(SharedArrays& shared, int rays, int samples, int warps, int color_row)
      : cdf(shared.take<float>(warps * kWarpSamples)),
        keys(shared.take<unsigned>(warps * kWarpKeys)),
        ray(shared.take<float>(rays * 6)),
        depths(shared.take<float>(rays * samples)),
        density(shared.take<float>(rays * samples)),
        order(shared.take<int>(rays * samples)),
        colors(shared.take<Color>(rays * samples * color_row)) {}
};

// Where a sample is, and where the team keeps what belongs to it.
struct PassSample {
  int at, ray;
  float3 point;
};

// Samples [first, first + count) of every ray of the team, as rows of an operand.
template <class Color>
struct SamplePass {
  static constexpr bool kRecords = false;  // nothing is kept for gradients
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
  __device__ __forceinline__ const float* direction(const PassSample& sample) const {
    return scratch.ray + 6 * sample.ray + 3;
  }
  // What a field that streams its weights leaves of a sample: its density, a colour, or two of its colour's channels.
  __device__ __forceinline__ void keep_density(int at, float density) const { scratch.density[at] = density; }
  __device__ __forceinline__ void keep_color(int at, int color_row, float red, float green, float blue) const {
    *reinterpret_cast<float4*>(scratch.colors + at * color_row) = make_float4(red, green, blue, 0.0f);
  }
  __device__ __forceinline__ void keep_channels(int at, int color_row, int channel, float x, float y) const {
    const Vector<Color, 2> pair = {{from_float<Color>(x), from_float<Color>(y)}};
    *reinterpret_cast<Vector<Color, 2>*>(scratch.colors + at * color_row + channel) = pair;
  }
  __device__ __forceinline__ void keep_pair(int at, int color_row, int channel, uint32_t pair) const {  // of halves
    *reinterpret_cast<uint32_t*>(scratch.colors + at * color_row + channel) = pair;
  }
};

// Coarse weights of rays, and from them their fine depths: of `first` and those behind it, kRays times as many as a
// warp has groups of lanes.
template <int kLanes, int kRays, class Color>
__device__ __forceinline__ void place_fine_samples(const RayTensors& tensors, const RaySettings& s,
                                                   const RayScratch<Color>& scratch, int first, int rays, int global,
                                                   int thread) {
  constexpr int kSlots = kLanes == 32 ? kWarpSamples / 32 : 1, kGroups = 32 / kLanes, kAll = kGroups * kRays;
  const int samples = s.coarse + s.fine, lane = thread % kLanes, warp = thread / 32;
  bool there[kRays];
  float density[kRays][kSlots], depth[kRays][kSlots], next[kRays][kSlots], draw[kSlots][kRays];
  float *depths[kRays], *cdf[kRays];
  unsigned* keys[kRays];
  const bool noisy = tensors.coarse_noise != nullptr;
  const int64_t before = global;  // rays
  const float* noise = noisy ? tensors.coarse_noise + before * s.coarse : nullptr;
  const float* draws = tensors.importance + before * s.fine;
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
      if (noisy) density[k][slot] += noise[ray * s.coarse + i];
      draw[slot][k] = draws[ray * s.fine + j];
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
                                               const RayScratch<Color>& scratch, int first, int rays, int global,
                                               int channels, int color_row, int thread) {
  constexpr int kSlots = kRays > 1 ? 1 : kWarpSamples / 32;
  const int samples = s.coarse + s.fine, lane = thread % 32, warp = thread / 32;
  bool there[kRays];
  const int64_t before = int64_t{global} * samples;  // in front of the tile's samples in [B, R, S + F]
  int first_sample[kRays];                           // of the tile's
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
    first_sample[k] = ray * samples;
    depths[k] = scratch.depths + first_sample[k];
    colors[k] = scratch.colors + first_sample[k] * color_row;
    order[k] = scratch.order + first_sample[k];
    keys[k] = scratch.keys + warp * kWarpKeys + k * part_of_warp(kWarpKeys, kRays);
    weights[k] = scratch.cdf + warp * kWarpSamples + k * part_of_warp(kWarpSamples, kRays);
    out[k] = tensors.colors + int64_t{global + ray} * channels;
  }
  merge<kRays, kSlots>(depths, order, keys, s.coarse, s.fine, lane, there);
  const float* noise = s.fine > 0 ? tensors.merged_noise : tensors.coarse_noise;
  const bool noisy = noise != nullptr;
  if (noisy) noise += before;
#pragma unroll
  for (int k = 0; k < kRays; k++)
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      if (32 * slot >= samples) continue;
      const int i = min(32 * slot + lane, samples - 1);
      sample[k][slot] = order[k][i];
      depth[k][slot] = depths[k][sample[k][slot]];
      next[k][slot] = depths[k][order[k][min(i + 1, samples - 1)]];
      density[k][slot] = scratch.density[first_sample[k] + sample[k][slot]];
      if (noisy) density[k][slot] += noise[first_sample[k] + i];
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
  float *of_weights = tensors.weights + before, *of_depths = tensors.depths + before;
  float* of_transmittance = tensors.transmittance == nullptr ? nullptr : tensors.transmittance + before;
#pragma unroll
  for (int k = 0; k < kRays; k++)
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      const int i = 32 * slot + lane;
      if (32 * slot >= samples) continue;
      if (s.last_back && i == samples - 1) weight[k][slot] += 1.0f - sum[k];
      depth_sum[k] += weight[k][slot] * depth[k][slot];
      if (i >= samples || !there[k]) continue;
      of_weights[first_sample[k] + i] = weight[k][slot];
      of_depths[first_sample[k] + i] = depth[k][slot];
      if (of_transmittance != nullptr) of_transmittance[first_sample[k] + i] = c.transmittance[k][slot];
    }
  sum_lanes(depth_sum, 1, 32);
#pragma unroll
  for (int k = 0; k < kRays; k++)
    if (lane == 0 && there[k]) {
      tensors.depth[global + first + k] = depth_sum[k];
      tensors.weight_sum[global + first + k] = sum[k];
    }
  composite_colors(colors, scratch.colors + color_row - kPadColors<Color>, weight, sample, weights, samples, channels,
                   color_row, out, lane, there);
}

// Has `count` floats from `first` on brought near, by all threads of a team; of null there is nothing to bring.
__device__ __forceinline__ void prefetch_floats(const float* from, int64_t first, int count, int thread, int threads) {
  constexpr int kLine = kCacheLine / sizeof(float);
  if (from == nullptr || count == 0) return;
  for (int i = thread * kLine; i < count + kLine - 1; i += threads * kLine)
    prefetch_line(from + first + min(i, count - 1));
}

// The warp's index, as a number that the compiler knows to be the same in all lanes: what depends on it is then no
// reason to look before every shuffle whether they have parted.
__device__ __forceinline__ int warp_of(int thread) { return __shfl_sync(~0u, thread / 32, 0); }

// Where the rays of the thread's team are, behind what the field has taken.
template <class Field>
__device__ __forceinline__ RayScratch<typename Field::Color> ray_scratch(SharedArrays shared,
                                                                         const typename Field::Layers& layers,
                                                                         const RaySettings& s) {
  const auto take = [&](SharedArrays& from) {
    return RayScratch<typename Field::Color>(from, s.block_rays, s.coarse + s.fine, Field::Team::threads() / 32,
                                             Field::color_row(layers));
  };
  shared.skip(Field::Team::index(), s.scratch_bytes, take);
  return take(shared);
}

// The beginning of a tile: the rays [global, global + rays) of [B, R] and their coarse depths. The tiles of a team lie
// `stride` rays apart.
template <class Team, class Color>
__device__ __forceinline__ void place_rays(const RayTensors& tensors, const RaySettings& s,
                                           const RayScratch<Color>& scratch, int global, int rays, int stride) {
  const int samples = s.coarse + s.fine, thread = anew(Team::thread()), threads = Team::threads();
  const int64_t before = global;  // rays
  const float *origins = tensors.origins + before * 3, *directions = tensors.directions + before * 3;
  for (int i = thread; i < 3 * rays; i += threads) {
    scratch.ray[i / 3 * 6 + i % 3] = origins[i];
    scratch.ray[i / 3 * 6 + 3 + i % 3] = directions[i];
  }
  // What the work on rays reads would be waited for once a ray, and what a tile begins with, by all warps.
  prefetch_floats(tensors.importance, before * s.fine, rays * s.fine, thread, threads);
  prefetch_floats(tensors.coarse_noise, before * s.coarse, rays * s.coarse, thread, threads);
  prefetch_floats(tensors.merged_noise, before * samples, rays * samples, thread, threads);
  const int rays_ahead = min(s.block_rays, s.images * s.rays - global - stride);
  if (rays_ahead > 0) {
    const int64_t ahead = before + stride;
    prefetch_floats(tensors.origins, ahead * 3, rays_ahead * 3, thread, threads);
    prefetch_floats(tensors.directions, ahead * 3, rays_ahead * 3, thread, threads);
    prefetch_floats(tensors.stratified, ahead * s.coarse, rays_ahead * s.coarse, thread, threads);
  }
  const float* stratified = tensors.stratified + before * s.coarse;
  for (int i = thread; i < rays * s.coarse; i += threads) {
    const int ray = s.coarse_divisor.divide(i), sample = i - ray * s.coarse;
    scratch.depths[ray * samples + sample] = s.range.depth(sample, stratified[i]);
  }
}

// A tile, by a team, between its barriers. `shared` is behind what the field has taken.
template <class Field>
__device__ __forceinline__ void march_tile(Field& field, SharedArrays shared, const RayTensors& tensors,
                                           const typename Field::Layers& layers, const RaySettings& s, int global,
                                           int rays, int stride) {
  using Color = typename Field::Color;
  using Team = typename Field::Team;
  const int samples = s.coarse + s.fine, warps = Team::threads() / 32;
  const auto scratch = [&] { return ray_scratch<Field>(shared, layers, s); };  // anew: the field needs the registers
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
    const int warp = warp_of(anew(Team::thread())), at_a_time = few ? 4 : 1;
    const RayScratch<Color> here = scratch();
    for (int first = at_a_time * warp; first < rays; first += at_a_time * warps)
      few ? place_fine_samples<16, 2>(tensors, s, here, first, rays, anew(global), anew(Team::thread()))
          : place_fine_samples<32, 1>(tensors, s, here, first, rays, anew(global), anew(Team::thread()));
    Team::sync();
    evaluate(s.coarse, s.fine_divisor);
  }
  const bool few = samples <= kFewSamples;
  const int warp = warp_of(anew(Team::thread())), at_a_time = few ? kRaysOfFew : 1;
  const int channels = Field::channels(layers), color_row = Field::color_row(layers);
  const RayScratch<Color> here = scratch();
  for (int first = at_a_time * warp; first < rays; first += at_a_time * warps)
    few ? composite_rays<kRaysOfFew>(tensors, s, here, first, rays, anew(global), channels, color_row,
                                     anew(Team::thread()))
        : composite_rays<1>(tensors, s, here, first, rays, anew(global), channels, color_row, anew(Team::thread()));
  Team::sync();  // the tile has been read
}

// The work of a block.
template <class Field>
__device__ __forceinline__ void march(const RayTensors& tensors, const typename Field::Layers& layers,
                                      const RaySettings& s) {
  using Color = typename Field::Color;
  using Team = typename Field::Team;
  SharedArrays shared;
  Field field(shared, layers);
  const RayScratch<Color> scratch = ray_scratch<Field>(shared, layers, s);
  for (int i = Team::thread(); i < kPadColors<Color>; i += Team::threads())  // what stands for samples not there
    scratch.colors[Field::color_row(layers) - 1 - i] = from_float<Color>(0.0f);

  // Consecutive parts of the work, so that a block changes its image as rarely as possible.
  const int block = blockIdx.x;
  // Where the block's tiles of an image end; computed anew wherever it is needed.
  const auto end = [&](int image) {
    return min(min((anew(block) + 1) * s.tiles_a_block, s.tiles), (anew(image) + 1) * s.tiles_an_image);
  };
  for (int first = block * s.tiles_a_block; first < s.tiles && first < (block + 1) * s.tiles_a_block;) {
    const int image = first / s.tiles_an_image;
    __syncthreads();  // nobody needs the image before
    field.begin(image);
    __syncthreads();
    for (int tile = first + Team::index(); tile < end(image); tile += Team::kTeams) {
      const int begin = (tile - image * s.tiles_an_image) * s.block_rays, rays = min(s.block_rays, s.rays - begin);
      march_tile<Field>(field, shared, tensors, layers, s, image * s.rays + begin, rays, Team::kTeams * s.block_rays);
    }
    first = end(image);
  }
}

}  // namespace cips3d

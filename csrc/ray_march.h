// Rays through a field on the chip: coarse samples, importance samples, their merge and the compositing, for any field
// that a block of threads can evaluate.
//
// A block works on a few rays of one image at a time. Two phases alternate: the field at all samples of a pass, and the
// work on rays, where a warp has one ray and its lanes the samples.
//
// A field is a type with
//   Layers                           what the host gives; a parameter of the kernel
//   Color                            the type of composited values in shared memory
//   static int color_row(layers)     the distance of two samples' values there
//   kFewestWarps, kMostWarps         of a block, multiples of 4; kMostThreads = 32 * kMostWarps
//   static int step(warps)           samples that a block evaluates at a time
//   static size_t bytes(layers)      of shared memory
//   static int channels(layers)      composited values
//   Field(SharedArrays&, layers)
//   void begin(image)                before the samples of another image; a barrier follows
//   void evaluate(SamplePass)        by all threads of the block, between barriers
#pragma once
#include "ray_lanes.h"

namespace cips3d {

// Rows of channels end 16 bytes later: the 8 rows of a warp's store lie in different banks.
template <class Color>
constexpr int kPadColors = static_cast<int>(16 / sizeof(Color));

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

// Samples of the rays that a block works on; sample s of ray r is at r * samples + s, coarse ones first.
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

// Where a sample is, and where the block keeps what belongs to it.
struct PassSample {
  int at, ray;
  float3 point;
};

// Samples [first, first + count) of every ray of the block, as rows of an operand.
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

// Coarse weights of rays, and from them their fine depths: a warp's `first` ray and, where a group of lanes is smaller
// than a warp, those behind it.
template <int kLanes, class Color>
__device__ __forceinline__ void place_fine_samples(const RayTensors& tensors, const RaySettings& s,
                                                   const RayScratch<Color>& scratch, int first, int rays,
                                                   int64_t global, int thread) {
  constexpr int kSlots = kLanes == 32 ? kWarpSamples / 32 : 1, kGroups = 32 / kLanes;
  const int samples = s.coarse + s.fine, lane = thread % kLanes, group = thread / kLanes;  // of the block
  const int mine = first + group % kGroups, ray = min(mine, rays - 1);
  float* depths = scratch.depths + ray * samples;
  float density[kSlots], depth[kSlots], next[kSlots], weight[kSlots];
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    if (kLanes * slot >= s.coarse) continue;
    const int i = kLanes * slot + lane, there = min(i, s.coarse - 1);
    depth[slot] = depths[there];
    next[slot] = depths[min(i + 1, s.coarse - 1)];
    density[slot] = scratch.density[ray * samples + there];
    if (tensors.coarse_noise != nullptr) density[slot] += tensors.coarse_noise[(global + ray) * s.coarse + there];
  }
  const auto c = composite_lanes<kLanes>(density, depth, next, s.coarse, s.softplus, lane);
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) weight[slot] = c.weight(slot);
  resample<kLanes>(depths, depths + s.coarse, weight, tensors.importance + (global + ray) * s.fine,
                   scratch.cdf + group * (kWarpSamples / kGroups), scratch.keys + group * (kWarpKeys / kGroups),
                   s.coarse, s.fine, lane, mine < rays);
}

// The final weights of a ray, and everything that is written of it.
template <class Color>
__device__ void composite_ray(const RayTensors& tensors, const RaySettings& s, const RayScratch<Color>& scratch,
                              int ray, int64_t global, int channels, int color_row, int thread) {
  const int lane = thread % 32, warp = thread / 32;
  constexpr int kSlots = kWarpSamples / 32;
  const int samples = s.coarse + s.fine;
  const float *depths = scratch.depths + ray * samples, *raw = scratch.density + ray * samples;
  int* order = scratch.order + ray * samples;
  merge(depths, order, scratch.keys + warp * kWarpKeys, s.coarse, s.fine, lane);
  float density[kSlots], depth[kSlots], next[kSlots];
  int sample[kSlots];
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    if (32 * slot >= samples) continue;
    const int i = 32 * slot + lane, there = min(i, samples - 1);
    sample[slot] = order[there];
    depth[slot] = depths[sample[slot]];
    next[slot] = depths[order[min(i + 1, samples - 1)]];
    density[slot] = raw[sample[slot]];
    const float* noise = s.fine > 0 ? tensors.merged_noise : tensors.coarse_noise;
    if (noise != nullptr) density[slot] += noise[global * samples + there];
  }
  const auto c = composite_lanes<32>(density, depth, next, samples, s.softplus, lane);
  float weight[kSlots], sum = 0.0f, depth_sum = 0.0f;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    weight[slot] = c.weight(slot);
    sum += weight[slot];
  }
  sum = sum_lanes(sum, 1, 32);
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = 32 * slot + lane;
    if (32 * slot >= samples) continue;
    if (s.last_back && i == samples - 1) weight[slot] += 1.0f - sum;
    depth_sum += weight[slot] * depth[slot];
    if (i >= samples) continue;
    tensors.weights[global * samples + i] = weight[slot];
    tensors.depths[global * samples + i] = depth[slot];
    if (tensors.transmittance != nullptr) tensors.transmittance[global * samples + i] = c.transmittance[slot];
  }
  depth_sum = sum_lanes(depth_sum, 1, 32);
  if (lane == 0) {
    tensors.depth[global] = depth_sum;
    tensors.weight_sum[global] = sum;
  }
  composite_colors(scratch.colors + ray * samples * color_row, scratch.colors + color_row - kPadColors<Color>, weight,
                   sample, scratch.cdf + warp * kWarpSamples, samples, channels, color_row,
                   tensors.colors + global * channels, lane);
}

// Has `count` floats from `first` on brought near, by all threads of the block; of null there is nothing to bring.
__device__ __forceinline__ void prefetch_floats(const float* from, int64_t first, int count) {
  constexpr int kLine = kCacheLine / sizeof(float);
  if (from == nullptr) return;
  for (int i = threadIdx.x * kLine; i < count + kLine - 1; i += blockDim.x * kLine)
    prefetch_line(from + first + min(i, count - 1));
}

// The thread's index, with nothing computed from it ahead: what the work on rays needs of it would otherwise take
// registers while the field is evaluated.
__device__ __forceinline__ int thread_here() {
  int thread = threadIdx.x;
  compute_here(thread);
  return thread;
}

// The work of a block.
template <class Field>
__device__ __forceinline__ void march(const RayTensors& tensors, const typename Field::Layers& layers,
                                      const RaySettings& s) {
  using Color = typename Field::Color;
  const int samples = s.coarse + s.fine;
  const int warps = blockDim.x / 32;
  SharedArrays shared;
  Field field(shared, layers);
  const RayScratch<Color> scratch(shared, s.block_rays, samples, warps, Field::color_row(layers));

  for (int i = threadIdx.x; i < kPadColors<Color>; i += blockDim.x)  // what stands for samples that are not there
    scratch.colors[Field::color_row(layers) - 1 - i] = from_float<Color>(0.0f);

  // Consecutive parts of the work, so that a block changes its image as rarely as possible.
  const int64_t tiles_an_image = ceil_div<int64_t>(s.rays, s.block_rays), tiles = s.images * tiles_an_image;
  const int64_t end = tiles * (blockIdx.x + 1) / gridDim.x;
  int64_t loaded = -1;
  for (int64_t tile = tiles * blockIdx.x / gridDim.x; tile < end; tile++) {
    const int64_t image = tile / tiles_an_image, begin = (tile - image * tiles_an_image) * s.block_rays;
    const int rays = static_cast<int>(min(static_cast<int64_t>(s.block_rays), s.rays - begin));
    const int64_t global = image * s.rays + begin;
    __syncthreads();  // the tile before has been read
    if (image != loaded) field.begin(image);
    loaded = image;
    for (int i = threadIdx.x; i < 3 * rays; i += blockDim.x) {
      scratch.ray[i / 3 * 6 + i % 3] = tensors.origins[global * 3 + i];
      scratch.ray[i / 3 * 6 + 3 + i % 3] = tensors.directions[global * 3 + i];
    }
    // What the work on rays reads would be waited for once a ray.
    prefetch_floats(tensors.importance, global * s.fine, rays * s.fine);
    prefetch_floats(tensors.coarse_noise, global * s.coarse, rays * s.coarse);
    prefetch_floats(tensors.merged_noise, global * samples, rays * samples);
    for (int i = threadIdx.x; i < rays * s.coarse; i += blockDim.x) {
      const int ray = s.coarse_divisor.divide(i), sample = i - ray * s.coarse;
      scratch.depths[ray * samples + sample] = stratified_depth(s, sample, tensors.stratified[global * s.coarse + i]);
    }
    __syncthreads();
    field.evaluate(SamplePass<Color>{scratch, rays, 0, s.coarse_divisor, samples});
    __syncthreads();
    if (s.fine > 0) {
      const bool two_a_warp = s.coarse <= 16 && s.fine <= 16;
      const int thread = thread_here();
      for (int first = (two_a_warp ? 2 : 1) * (thread / 32); first < rays; first += (two_a_warp ? 2 : 1) * warps)
        two_a_warp ? place_fine_samples<16>(tensors, s, scratch, first, rays, global, thread)
                   : place_fine_samples<32>(tensors, s, scratch, first, rays, global, thread);
      __syncthreads();
      field.evaluate(SamplePass<Color>{scratch, rays, s.coarse, s.fine_divisor, samples});
      __syncthreads();
    }
    const int thread = thread_here();
    for (int ray = thread / 32; ray < rays; ray += warps)
      composite_ray(tensors, s, scratch, ray, global + ray, Field::channels(layers), Field::color_row(layers), thread);
  }
}

template <class Field>
__global__ void __launch_bounds__(Field::kMostThreads, 1)
    render_rays_kernel(const RayTensors tensors, const typename Field::Layers layers, const RaySettings s) {
  if constexpr (Field::kFewestBytes > kSharedOfCode)
    __trap();
  else
    march<Field>(tensors, layers, s);
}

// How the work is cut: rays and warps of a block. A pass of `rays * samples` samples should fill its warps, and where
// two blocks fit on a multiprocessor, one computes while the other sorts: that is worth passes that are less full.
constexpr double kWorthTwoBlocks = 0.1;
struct Plan {
  int rays = 0, warps = 0, blocks = 0;  // blocks of a multiprocessor
  size_t shared = 0;                    // bytes of a block
  double filled = 0.0;
};

template <class Field>
Plan plan_blocks(const typename Field::Layers& layers, const RaySettings& s, const DeviceLimits& device,
                 int registers) {
  // Each of a multiprocessor's four schedulers has registers of its own for whole warps.
  constexpr int kSchedulers = 4, kRegisters = 16384;
  const int resident_warps = kSchedulers * (kRegisters / (32 * registers));
  const int samples = s.coarse + s.fine;
  Plan best;
  for (int blocks = 2; blocks >= 1; blocks--)
    // As many on every scheduler: with five, one of them would take as long as all with eight.
    for (int warps = Field::kMostWarps; warps >= Field::kFewestWarps; warps -= kSchedulers) {
      if (blocks * warps > resident_warps) continue;
      for (int rays = 1; rays <= 64; rays++) {
        const size_t shared = Field::bytes(layers) +
                              RayScratch<typename Field::Color>::bytes(rays, samples, warps, Field::color_row(layers));
        if ((shared + kSharedOverhead) * blocks > device.shared_multiprocessor || shared > device.shared_block) break;
        double used = 0, offered = 0;
        for (const int count : {s.coarse, s.fine}) {
          used += rays * count;
          offered += ceil_div(rays * count, Field::step(warps)) * Field::step(warps);
        }
        const double filled = used / offered;
        const double better = blocks < best.blocks ? kWorthTwoBlocks : 0.02;
        if (filled > best.filled + better) best = {rays, warps, blocks, shared, filled};
      }
    }
  return best;  // without rays where not one of them fits
}

template <class Field>
Plan plan_blocks(const typename Field::Layers& layers, const RaySettings& s) {
  return plan_blocks<Field>(layers, s, device_limits(), registers_a_thread(render_rays_kernel<Field>));
}

template <class Field>
void launch_rays(const RayTensors& tensors, const typename Field::Layers& layers, RaySettings s, const Plan& plan,
                 cudaStream_t stream) {
  if (plan.rays == 0) throw std::invalid_argument("one ray's samples do not fit into shared memory");
  s.block_rays = plan.rays;
  s.coarse_divisor = Divisor::of(s.coarse), s.fine_divisor = Divisor::of(s.fine);
  const int64_t tiles = s.images * ceil_div<int64_t>(s.rays, plan.rays);
  const int64_t resident = static_cast<int64_t>(device_limits().multiprocessors) * plan.blocks;
  launch(render_rays_kernel<Field>, dim3(blocks_for(std::min(tiles, resident), 1)), dim3(plan.warps * 32), plan.shared,
         stream, tensors, layers, s);
}

}  // namespace cips3d

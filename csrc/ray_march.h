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
#include "ray_samples.h"
#include "rays.h"

namespace cips3d {

constexpr int kWarpSamples = 96;  // most samples of a ray, coarse and fine: three a lane
constexpr int kSlots = kWarpSamples / 32;

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

struct RaySettings {
  int64_t images, rays;
  int coarse, fine, block_rays;
  float near, far;
  bool softplus, last_back;
};

// Samples of the rays that a block works on; sample s of ray r is at r * samples + s, coarse ones first.
template <class Color>
struct RayScratch {
  float* ray;      // [block_rays, 6] origin, direction
  float* depths;   // [block_rays, samples] fine ones ascending
  float* density;  // [block_rays, samples] raw
  float* weights;  // [block_rays, samples] of the final compositing
  int* order;      // [block_rays, samples] order[i]: which sample is the ith from the front
  float* cdf;      // [warps, kWarpSamples]
  unsigned* keys;  // [warps, kWarpSamples] depths to be put in order, as sortable numbers
  Color* colors;   // [block_rays * samples, color row]

  static size_t bytes(int rays, int samples, int warps, int color_row) {
    const size_t all = static_cast<size_t>(rays) * samples;
    return shared_bytes<float>(rays * 6) + 3 * shared_bytes<float>(all) + shared_bytes<int>(all) +
           shared_bytes<float>(warps * kWarpSamples) + shared_bytes<unsigned>(warps * kWarpSamples) +
           shared_bytes<Color>(all * color_row);
  }
  __device__ __forceinline__ RayScratch(SharedArrays& shared, int rays, int samples, int warps, int color_row)
      : ray(shared.take<float>(rays * 6)),
        depths(shared.take<float>(rays * samples)),
        density(shared.take<float>(rays * samples)),
        weights(shared.take<float>(rays * samples)),
        order(shared.take<int>(rays * samples)),
        cdf(shared.take<float>(warps * kWarpSamples)),
        keys(shared.take<unsigned>(warps * kWarpSamples)),
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
  int rays, first, count, samples;

  __device__ __forceinline__ int size() const { return rays * count; }
  // Of `row`; rows past the end repeat the last one, and nothing may be stored of them.
  __device__ __forceinline__ PassSample operator[](int row) const {
    const int there = min(row, size() - 1), ray = there / count, at = ray * samples + first + there % count;
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

// Weights of samples in order of depth, a few slots a lane: sample slot * 32 + lane has density[slot] and depth[slot].
struct Compositing {
  float alpha[kSlots], transmittance[kSlots];  // in front of the sample
  float behind;                                // of the whole ray
  __device__ __forceinline__ float weight(int slot) const { return alpha[slot] * transmittance[slot]; }
};

__device__ __forceinline__ Compositing composite_lanes(const float (&density)[kSlots], const float (&depth)[kSlots],
                                                       const float (&next)[kSlots], int count, bool softplus,
                                                       int lane) {
  Compositing c;
  float light = 1.0f;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = 32 * slot + lane;
    c.alpha[slot] = c.transmittance[slot] = 0.0f;
    if (32 * slot >= count) continue;
    const float delta = i + 1 < count ? next[slot] - depth[slot] : kLastDelta;
    c.alpha[slot] = i < count ? 1.0f - expf(-delta * activated(density[slot], softplus)) : 0.0f;
    const float factor = i < count ? 1.0f - c.alpha[slot] + kTransmittanceFloor : 1.0f;
    const float up_to = product_up_to(factor, lane, 32);
    const float before = __shfl_up_sync(~0u, up_to, 1);
    c.transmittance[slot] = light * (lane == 0 ? 1.0f : before);
    light *= __shfl_sync(~0u, up_to, 31);
  }
  c.behind = light;
  return c;
}

__device__ __forceinline__ float sum_warp(float x) { return sum_lanes(x, 1, 32); }

// Fine depths of one ray: draws from the density that the coarse weights define, sorted.
__device__ inline void resample(const float* depths,  // [coarse + fine], the coarse ones are there
                                float* fine_depths,   // [fine]
                                const float (&weight)[kSlots], const float* u, const RaySettings& s, float* cdf,
                                unsigned* drawn, int lane) {
  const int bins = s.coarse - 1;  // edges of the distribution: midpoints of the coarse depths
  float inner[kSlots], total = 0.0f;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = 32 * slot + lane;
    inner[slot] = i >= 1 && i < bins ? (weight[slot] + kWeightFloor) + kWeightFloor : 0.0f;
    total += inner[slot];
  }
  total = sum_warp(total);
  float carried = 0.0f;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    if (32 * slot >= bins) break;
    const float up_to = carried + sum_up_to(inner[slot] / total, lane, 32);
    carried = __shfl_sync(~0u, up_to, 31);
    if (32 * slot + lane < bins) cdf[32 * slot + lane] = up_to;  // cdf[0] = 0
  }
  __syncwarp();
  for (int j = lane; j < s.fine; j += 32) {
    int upper = lower_bound(cdf, bins, u[j]);  // the position that torch.searchsorted gives
    const int lower = max(upper - 1, 0);
    upper = min(upper, bins - 1);
    const float step = cdf[upper] - cdf[lower];
    const float share = (u[j] - cdf[lower]) / (step < kCdfFloor ? 1.0f : step);
    const float a = 0.5f * (depths[lower] + depths[lower + 1]), b = 0.5f * (depths[upper] + depths[upper + 1]);
    drawn[j] = sortable(between(a, b, share));
  }
  __syncwarp();
  for (int j = lane; j < s.fine; j += 32)
    fine_depths[count_before(drawn, s.fine, drawn[j], j)] = from_sortable(drawn[j]);
  __syncwarp();
}

// order[i]: which sample is the ith from the front; of equal depths the coarse one.
__device__ inline void merge(const float* depths, int* order, unsigned* keys, int coarse, int fine, int lane) {
  for (int i = lane; i < coarse + fine; i += 32) keys[i] = sortable(depths[i]);
  __syncwarp();
  for (int i = lane; i < coarse + fine; i += 32) order[count_before(keys, coarse + fine, keys[i], i)] = i;
  __syncwarp();
}

// Coarse weights of a ray, and from them its fine depths.
template <class Color>
__device__ void place_fine_samples(const RayTensors& tensors, const RaySettings& s, const RayScratch<Color>& scratch,
                                   int ray, int64_t global, int lane) {
  const int samples = s.coarse + s.fine, warp = threadIdx.x / 32;
  float* depths = scratch.depths + ray * samples;
  float density[kSlots], depth[kSlots], next[kSlots], weight[kSlots];
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = 32 * slot + lane, there = min(i, s.coarse - 1);
    depth[slot] = depths[there];
    next[slot] = depths[min(i + 1, s.coarse - 1)];
    density[slot] = scratch.density[ray * samples + there];
    if (tensors.coarse_noise != nullptr) density[slot] += tensors.coarse_noise[global * s.coarse + there];
  }
  const Compositing c = composite_lanes(density, depth, next, s.coarse, s.softplus, lane);
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) weight[slot] = c.weight(slot);
  resample(depths, depths + s.coarse, weight, tensors.importance + global * s.fine, s,
           scratch.cdf + warp * kWarpSamples, scratch.keys + warp * kWarpSamples, lane);
}

// The final weights of a ray, and everything that is written of it.
template <class Color>
__device__ void composite_ray(const RayTensors& tensors, const RaySettings& s, const RayScratch<Color>& scratch,
                              int ray, int64_t global, int channels, int color_row, int lane) {
  const int samples = s.coarse + s.fine;
  const float *depths = scratch.depths + ray * samples, *raw = scratch.density + ray * samples;
  int* order = scratch.order + ray * samples;
  float* weights = scratch.weights + ray * samples;
  merge(depths, order, scratch.keys + threadIdx.x / 32 * kWarpSamples, s.coarse, s.fine, lane);
  float density[kSlots], depth[kSlots], next[kSlots];
  int sample[kSlots];
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = 32 * slot + lane, there = min(i, samples - 1);
    sample[slot] = order[there];
    depth[slot] = depths[sample[slot]];
    next[slot] = depths[order[min(i + 1, samples - 1)]];
    density[slot] = raw[sample[slot]];
    const float* noise = s.fine > 0 ? tensors.merged_noise : tensors.coarse_noise;
    if (noise != nullptr) density[slot] += noise[global * samples + there];
  }
  const Compositing c = composite_lanes(density, depth, next, samples, s.softplus, lane);
  float weight[kSlots], sum = 0.0f, depth_sum = 0.0f;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    weight[slot] = c.weight(slot);
    sum += weight[slot];
  }
  sum = sum_warp(sum);
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = 32 * slot + lane;
    if (s.last_back && i == samples - 1) weight[slot] += 1.0f - sum;
    depth_sum += weight[slot] * depth[slot];
    if (i >= samples) continue;
    weights[sample[slot]] = weight[slot];
    tensors.weights[global * samples + i] = weight[slot];
    tensors.depths[global * samples + i] = depth[slot];
    if (tensors.transmittance != nullptr) tensors.transmittance[global * samples + i] = c.transmittance[slot];
  }
  depth_sum = sum_warp(depth_sum);
  if (lane == 0) {
    tensors.depth[global] = depth_sum;
    tensors.weight_sum[global] = sum;
  }
  __syncwarp();
  for (int channel = 2 * lane; channel < channels; channel += 64) {
    const Color* color = scratch.colors + ray * samples * color_row + channel;
    float x = 0.0f, y = 0.0f;
    for (int k = 0; k < samples; k++) {
      const Vector<Color, 2> pair = *reinterpret_cast<const Vector<Color, 2>*>(color + k * color_row);
      x = fmaf(weights[k], to_float(pair.value[0]), x);
      y = fmaf(weights[k], to_float(pair.value[1]), y);
    }
    tensors.colors[global * channels + channel] = x;
    if (channel + 1 < channels) tensors.colors[global * channels + channel + 1] = y;
  }
}

// Has `count` floats from `first` on brought near, by all threads of the block; of null there is nothing to bring.
__device__ __forceinline__ void prefetch_floats(const float* from, int64_t first, int count) {
  constexpr int kLine = kCacheLine / sizeof(float);
  if (from == nullptr) return;
  for (int i = threadIdx.x * kLine; i < count + kLine - 1; i += blockDim.x * kLine)
    prefetch_line(from + first + min(i, count - 1));
}

// The work of a block.
template <class Field>
__device__ __forceinline__ void march(const RayTensors& tensors, const typename Field::Layers& layers,
                                      const RaySettings& s) {
  using Color = typename Field::Color;
  const int samples = s.coarse + s.fine;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  SharedArrays shared;
  Field field(shared, layers);
  const RayScratch<Color> scratch(shared, s.block_rays, samples, warps, Field::color_row(layers));

  // Consecutive parts of the work, so that a block changes its image as rarely as possible.
  const int64_t tiles_an_image = ceil_div<int64_t>(s.rays, s.block_rays), tiles = s.images * tiles_an_image;
  const int64_t end = tiles * (blockIdx.x + 1) / gridDim.x;
  int64_t loaded = -1;
  for (int64_t tile = tiles * blockIdx.x / gridDim.x; tile < end; tile++) {
    const int64_t image = tile / tiles_an_image, first = (tile - image * tiles_an_image) * s.block_rays;
    const int rays = static_cast<int>(min(static_cast<int64_t>(s.block_rays), s.rays - first));
    const int64_t global = image * s.rays + first;
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
    for (int i = threadIdx.x; i < rays * s.coarse; i += blockDim.x)
      scratch.depths[i / s.coarse * samples + i % s.coarse] =
          stratified_depth(s, i % s.coarse, tensors.stratified[global * s.coarse + i]);
    __syncthreads();
    field.evaluate(SamplePass<Color>{scratch, rays, 0, s.coarse, samples});
    __syncthreads();
    if (s.fine > 0) {
      for (int ray = warp; ray < rays; ray += warps) place_fine_samples(tensors, s, scratch, ray, global + ray, lane);
      __syncthreads();
      field.evaluate(SamplePass<Color>{scratch, rays, s.coarse, s.fine, samples});
      __syncthreads();
    }
    for (int ray = warp; ray < rays; ray += warps)
      composite_ray(tensors, s, scratch, ray, global + ray, Field::channels(layers), Field::color_row(layers), lane);
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
  const int64_t tiles = s.images * ceil_div<int64_t>(s.rays, plan.rays);
  const int64_t resident = static_cast<int64_t>(device_limits().multiprocessors) * plan.blocks;
  launch(render_rays_kernel<Field>, dim3(blocks_for(std::min(tiles, resident), 1)), dim3(plan.warps * 32), plan.shared,
         stream, tensors, layers, s);
}

}  // namespace cips3d

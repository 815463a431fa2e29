// The NeRF branch as one kernel: rays, folded layers and random draws in; composited colour activations, depth, weights
// and depths out. Coarse samples, importance samples, their merge and the compositing stay on the chip.
//
// A block works on a few rays of one image at a time. Two phases alternate: the field at all samples of a pass, where a
// warp has 16 * kTiles samples of any rays, and the work on rays, where a warp has one ray and its lanes the samples.
#include "ray_samples.h"
#include "rays.h"
#include "siren_field.h"

namespace cips3d {
namespace {

constexpr int kWarpSamples = 96;  // most samples of a ray, coarse and fine: three a lane
constexpr int kSlots = kWarpSamples / 32;
struct RayTensors {
  const float* origins;       // [B, R, 3]
  const float* directions;    // [B, R, 3]
  const float* stratified;    // [B, R, S] draws in [0, 1)
  const float* importance;    // [B, R, F] draws in [0, 1), null with F = 0
  const float* coarse_noise;  // [B, R, S] added to the coarse densities, or null
  const float* merged_noise;  // [B, R, S + F] added to the merged densities, or null
  float* colors;              // [B, R, C] composited colour activations
  float* weight_sum;          // [B, R]
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
  Color* colors;   // [block_rays * samples, row]
};

template <class Color>
constexpr int color_row(int channels) {
  return channels + static_cast<int>(16 / sizeof(Color));  // 16 bytes more: the 8 rows of a warp's store in other banks
}

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
__device__ void resample(const float* depths,  // [coarse + fine], the coarse ones are there
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
__device__ void merge(const float* depths, int* order, unsigned* keys, int coarse, int fine, int lane) {
  for (int i = lane; i < coarse + fine; i += 32) keys[i] = sortable(depths[i]);
  __syncwarp();
  for (int i = lane; i < coarse + fine; i += 32) order[count_before(keys, coarse + fine, keys[i], i)] = i;
  __syncwarp();
}

template <int kWidth, int kColor, int kTiles, bool kAccurate>
struct RenderKernel {
  using Color = std::conditional_t<kAccurate, float, half>;
  using Weights = FieldWeights<kWidth, kColor, kAccurate>;
  static constexpr int kColorRow = color_row<Color>(kColor);
  static constexpr int kStep = 16 * kTiles;  // samples a warp evaluates at a time

  static size_t shared_size(int block_rays, int samples, int warps) {
    const size_t all = static_cast<size_t>(block_rays) * samples;
    return Weights::bytes() + shared_bytes<float>(block_rays * 6) + 3 * shared_bytes<float>(all) +
           shared_bytes<int>(all) + shared_bytes<float>(warps * kWarpSamples) +
           shared_bytes<unsigned>(warps * kWarpSamples) + shared_bytes<Color>(all * kColorRow);
  }

  // Densities and colours of samples [first, first + count) of every ray of the block.
  __device__ static void evaluate(const Weights& weights, const FieldLayers& layers, const RayScratch<Color>& scratch,
                                  int rays, int first, int count, int samples) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int rows = rays * count;
    for (int base = warp * kStep; base < rows; base += warps * kStep) {
      float3 points[kTiles][2];
      int at[kTiles][2];
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int row = base + 16 * m + 8 * r + lane / 4;
          const int ray = min(row, rows - 1) / count;  // rows past the end repeat the last one and store nothing
          at[m][r] = row < rows ? ray * samples + first + row % count : -1;
          const float* o = scratch.ray + 6 * ray;
          const float t = scratch.depths[ray * samples + first + min(row, rows - 1) % count];
          points[m][r] = make_float3(fmaf(t, o[3], o[0]), fmaf(t, o[4], o[1]), fmaf(t, o[5], o[2]));
        }
      float density[kTiles][2];
      evaluate_field<kWidth, kColor, kTiles, kAccurate>(
          weights, points, density, lane, [&](int m, int r, int channel, float x, float y) {
            if (at[m][r] < 0) return;
            Vector<Color, 2> pair = {{from_float<Color>(x), from_float<Color>(y)}};
            *reinterpret_cast<Vector<Color, 2>*>(scratch.colors + at[m][r] * kColorRow + channel) = pair;
          });
      if (lane % 4 != 0) continue;
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++)
          if (at[m][r] >= 0) scratch.density[at[m][r]] = density[m][r] + ball(layers, points[m][r]);
    }
  }

  // Coarse weights of a ray, and from them its fine depths.
  __device__ static void place_fine_samples(const RayTensors& tensors, const RaySettings& s,
                                            const RayScratch<Color>& scratch, int ray, int64_t global, int lane) {
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
  __device__ static void composite(const RayTensors& tensors, const RaySettings& s, const RayScratch<Color>& scratch,
                                   int ray, int64_t global, int channels, int lane) {
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
      tensors.weight_sum[global] = s.last_back ? 1.0f : sum;
    }
    __syncwarp();
    for (int channel = 2 * lane; channel < channels; channel += 64) {
      const Color* color = scratch.colors + ray * samples * kColorRow + channel;
      float x = 0.0f, y = 0.0f;
      for (int k = 0; k < samples; k++) {
        const Vector<Color, 2> pair = *reinterpret_cast<const Vector<Color, 2>*>(color + k * kColorRow);
        x = fmaf(weights[k], to_float(pair.value[0]), x);
        y = fmaf(weights[k], to_float(pair.value[1]), y);
      }
      tensors.colors[global * channels + channel] = x;
      if (channel + 1 < channels) tensors.colors[global * channels + channel + 1] = y;
    }
  }
};

template <int kWidth, int kColor, int kTiles, bool kAccurate>
__global__ void __launch_bounds__(256, 1)
    render_rays_kernel(const RayTensors tensors, const FieldLayers layers, const RaySettings s) {
  using Kernel = RenderKernel<kWidth, kColor, kTiles, kAccurate>;
  using Color = typename Kernel::Color;
  const int samples = s.coarse + s.fine, all = s.block_rays * samples;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  SharedArrays shared;
  typename Kernel::Weights weights(shared);
  RayScratch<Color> scratch;
  scratch.ray = shared.take<float>(s.block_rays * 6);
  scratch.depths = shared.take<float>(all);
  scratch.density = shared.take<float>(all);
  scratch.weights = shared.take<float>(all);
  scratch.order = shared.take<int>(all);
  scratch.cdf = shared.take<float>(warps * kWarpSamples);
  scratch.keys = shared.take<unsigned>(warps * kWarpSamples);
  scratch.colors = shared.take<Color>(static_cast<size_t>(all) * Kernel::kColorRow);

  // Consecutive parts of the work, so that a block changes its image, and loads weights, as rarely as possible.
  const int64_t tiles_an_image = ceil_div<int64_t>(s.rays, s.block_rays), tiles = s.images * tiles_an_image;
  const int64_t end = tiles * (blockIdx.x + 1) / gridDim.x;
  int64_t loaded = -1;
  for (int64_t tile = tiles * blockIdx.x / gridDim.x; tile < end; tile++) {
    const int64_t image = tile / tiles_an_image, first = (tile - image * tiles_an_image) * s.block_rays;
    const int rays = static_cast<int>(min(static_cast<int64_t>(s.block_rays), s.rays - first));
    const int64_t global = image * s.rays + first;
    __syncthreads();  // the tile before has been read
    if (image != loaded) weights.load(layers, image);
    loaded = image;
    for (int i = threadIdx.x; i < 3 * rays; i += blockDim.x) {
      scratch.ray[i / 3 * 6 + i % 3] = tensors.origins[global * 3 + i];
      scratch.ray[i / 3 * 6 + 3 + i % 3] = tensors.directions[global * 3 + i];
    }
    for (int i = threadIdx.x; i < rays * s.coarse; i += blockDim.x)
      scratch.depths[i / s.coarse * samples + i % s.coarse] =
          stratified_depth(s, i % s.coarse, tensors.stratified[global * s.coarse + i]);
    __syncthreads();
    Kernel::evaluate(weights, layers, scratch, rays, 0, s.coarse, samples);
    __syncthreads();
    if (s.fine > 0) {
      for (int ray = warp; ray < rays; ray += warps)
        Kernel::place_fine_samples(tensors, s, scratch, ray, global + ray, lane);
      __syncthreads();
      Kernel::evaluate(weights, layers, scratch, rays, s.coarse, s.fine, samples);
      __syncthreads();
    }
    for (int ray = warp; ray < rays; ray += warps)
      Kernel::composite(tensors, s, scratch, ray, global + ray, layers.color, lane);
  }
}
// How the work is cut: rays and warps of a block. A pass of `rays * samples` samples should fill its warps, and where
// two blocks fit on a multiprocessor, one computes while the other sorts.
struct Plan {
  int rays = 0, warps = 0, blocks = 0;  // blocks of a multiprocessor
  double filled = 0.0;
};

template <class Kernel>
Plan plan_blocks(const RaySettings& s, const DeviceLimits& device) {
  constexpr int kRegisters = 65536, kRegistersAThread = 200, kMostWarps = 8;
  const int samples = s.coarse + s.fine;
  Plan best;
  for (int blocks = 2; blocks >= 1; blocks--)
    for (int warps = kMostWarps; warps >= 4; warps--) {
      if (blocks * warps * 32 * kRegistersAThread > kRegisters) continue;
      for (int rays = 1; rays <= 64; rays++) {
        if ((Kernel::shared_size(rays, samples, warps) + kSharedOverhead) * blocks > device.shared_multiprocessor)
          break;
        if (Kernel::shared_size(rays, samples, warps) > device.shared_block) break;
        double used = 0, offered = 0;
        for (const int count : {s.coarse, s.fine}) {
          used += rays * count;
          offered += ceil_div(rays * count, warps * Kernel::kStep) * warps * Kernel::kStep;
        }
        const double filled = used / offered;
        if (filled > best.filled + 0.02) best = {rays, warps, blocks, filled};
      }
    }
  return best;  // without rays where not one of them fits
}

template <int kWidth, int kColor, int kTiles, bool kAccurate>
void launch_render(const RayTensors& tensors, const FieldLayers& layers, RaySettings s, cudaStream_t stream) {
  using Kernel = RenderKernel<kWidth, kColor, kTiles, kAccurate>;
  const DeviceLimits device = device_limits();
  const Plan plan = plan_blocks<Kernel>(s, device);
  if (plan.rays == 0) throw std::invalid_argument("one ray's samples do not fit into shared memory");
  s.block_rays = plan.rays;
  const int64_t tiles = s.images * ceil_div<int64_t>(s.rays, plan.rays);
  const int64_t resident = static_cast<int64_t>(device.multiprocessors) * plan.blocks;
  launch(render_rays_kernel<kWidth, kColor, kTiles, kAccurate>, dim3(blocks_for(std::min(tiles, resident), 1)),
         dim3(plan.warps * 32), Kernel::shared_size(plan.rays, s.coarse + s.fine, plan.warps), stream, tensors, layers,
         s);
}

}  // namespace

bool render_rays_fits(int coarse, int fine, bool accurate) {
  RaySettings s = {};
  s.coarse = coarse, s.fine = fine;
  const DeviceLimits device = device_limits();
  return (accurate ? plan_blocks<RenderKernel<128, 64, 1, true>>(s, device).rays
                   : plan_blocks<RenderKernel<128, 64, 2, false>>(s, device).rays) > 0;
}

void render_rays(cudaStream_t stream, Pointer origins, Pointer directions, Pointer stratified, Pointer importance,
                 Pointer coarse_noise, Pointer merged_noise, Pointer first_weight, Pointer first_bias,
                 Pointer second_weight, Pointer second_bias, Pointer density_weight, Pointer density_bias,
                 Pointer color_weight, Pointer color_bias, Pointer colors, Pointer weight_sum, Pointer depth,
                 Pointer weights, Pointer depths, Pointer transmittance, int64_t images, int64_t rays, int coarse,
                 int fine, int width, int color, double ball_density, double ball_radius, double near, double far,
                 bool softplus, bool last_back, bool accurate) {
  const RayTensors tensors = {input<float>(origins),    input<float>(directions),   input<float>(stratified),
                              input<float>(importance), input<float>(coarse_noise), input<float>(merged_noise),
                              output<float>(colors),    output<float>(weight_sum),  output<float>(depth),
                              output<float>(weights),   output<float>(depths),      output<float>(transmittance)};
  const FieldLayers layers = {input<float>(first_weight),
                              input<float>(first_bias),
                              input<float>(second_weight),
                              input<float>(second_bias),
                              input<float>(density_weight),
                              input<float>(density_bias),
                              input<float>(color_weight),
                              input<float>(color_bias),
                              width,
                              color,
                              static_cast<float>(ball_density),
                              static_cast<float>(ball_radius)};
  const RaySettings s = {images,   rays,     coarse, fine, 0, static_cast<float>(near), static_cast<float>(far),
                         softplus, last_back};
  if (accurate)
    launch_render<128, 64, 1, true>(tensors, layers, s, stream);
  else
    launch_render<128, 64, 2, false>(tensors, layers, s, stream);
}

}  // namespace cips3d

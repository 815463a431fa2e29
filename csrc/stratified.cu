// Stratified depths and the points on rays at depths, in one pass, and the gradients of the points. Bound by memory.
// A block has whole rays. Points are three numbers each, so they cross shared memory: consecutive threads write and
// read consecutive addresses.
#include "rays.h"
#include "stratified_range.h"

namespace cips3d {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 1024;  // samples that a block works on at a time

// As many rays as fit into a tile; one, tile by tile, where not even that fits. Multiples of 4 keep tiles aligned.
int rays_a_block(int64_t samples) {
  const int rays = static_cast<int>(std::clamp<int64_t>(kTile / samples, 1, kThreads));
  return rays < 4 ? rays : rays / 4 * 4;
}

// Depths from draws where `u` is given, otherwise `depths` are given.
template <bool kWithPoints>
__global__ void __launch_bounds__(kThreads)
    stratified_points_kernel(const float* __restrict__ u,           // [images, rays, S] or null
                             const float* __restrict__ origins,     // [images, rays, 3], or [images, 3] where shared
                             const float* __restrict__ directions,  // [images, rays, 3]
                             float* depths,                         // [images, rays, S]
                             float* __restrict__ points,            // [images, rays, S, 3], only with kWithPoints
                             int64_t rays, bool shared_origin, StratifiedRange range, int rays_a_block) {
  const int samples = range.samples;
  const int64_t first_ray = static_cast<int64_t>(blockIdx.x) * rays_a_block;
  const int count = static_cast<int>(min(static_cast<int64_t>(rays_a_block), rays - first_ray)) * samples;
  const int64_t block_ray = blockIdx.y * rays + first_ray;
  SharedArrays arrays;
  float* staged = arrays.take<float>(kWithPoints ? 3 * kTile : 0);
  for (int tile = 0; tile < count; tile += kTile) {
    const int in_tile = min(kTile, count - tile);
    const int64_t sample = block_ray * samples + tile;  // the tile's first
#pragma unroll
    for (int local = threadIdx.x; local < kTile; local += kThreads) {
      if (local >= in_tile) break;
      const int ray = (tile + local) / samples;
      float depth;
      if (u == nullptr) {
        depth = depths[sample + local];
      } else {
        depth = range.depth(tile + local - ray * samples, u[sample + local]);
        depths[sample + local] = depth;
      }
      if (kWithPoints) {
        const float* origin = origins + 3 * (shared_origin ? blockIdx.y : block_ray + ray);
        const float* direction = directions + 3 * (block_ray + ray);
#pragma unroll
        for (int c = 0; c < 3; c++) staged[3 * local + c] = fmaf(depth, direction[c], origin[c]);
      }
    }
    if (kWithPoints) {
      __syncthreads();
      const int vectors = 3 * sample % 4 == 0 ? 3 * in_tile / 4 : 0;
      for (int i = threadIdx.x; i < vectors; i += kThreads)
        reinterpret_cast<float4*>(points + 3 * sample)[i] = reinterpret_cast<const float4*>(staged)[i];
      for (int i = 4 * vectors + threadIdx.x; i < 3 * in_tile; i += kThreads) points[3 * sample + i] = staged[i];
      __syncthreads();
    }
  }
}

// dO = Σ_s dP_s, dD = Σ_s t_s dP_s, dt_s = D · dP_s.
__global__ void __launch_bounds__(kThreads)
    ray_points_backward_kernel(const float* __restrict__ grad,        // [rays, S, 3]
                               const float* __restrict__ directions,  // [rays, 3]
                               const float* __restrict__ depths,      // [rays, S]
                               float* __restrict__ grad_origins,      // [rays, 3]
                               float* __restrict__ grad_directions,   // [rays, 3]
                               float* __restrict__ grad_depths,       // [rays, S] or null
                               int64_t rays, int samples, int rays_a_block, int group) {
  const int64_t first_ray = static_cast<int64_t>(blockIdx.x) * rays_a_block;
  const int block_rays = static_cast<int>(min(static_cast<int64_t>(rays_a_block), rays - first_ray));
  const int count = block_rays * samples, own_ray = threadIdx.x / group;
  SharedArrays arrays;
  float* staged = arrays.take<float>(3 * kTile);
  float* staged_depths = arrays.take<float>(kTile);
  float sums[6] = {};
  for (int tile = 0; tile < count; tile += kTile) {
    const int in_tile = min(kTile, count - tile);
    const int64_t sample = first_ray * samples + tile;  // the tile's first
#pragma unroll 4
    for (int i = threadIdx.x; i < 3 * in_tile; i += kThreads) staged[i] = grad[3 * sample + i];
    for (int i = threadIdx.x; i < in_tile; i += kThreads) staged_depths[i] = depths[sample + i];
    __syncthreads();
    if (own_ray < block_rays) {
      // A tile holds whole rays or a piece of the only one.
      const int begin = own_ray * samples, end = min(begin + samples, in_tile);
      for (int i = begin + static_cast<int>(threadIdx.x) % group; i < end; i += group) {
#pragma unroll
        for (int c = 0; c < 3; c++) {
          sums[c] += staged[3 * i + c];
          sums[3 + c] = fmaf(staged_depths[i], staged[3 * i + c], sums[3 + c]);
        }
      }
    }
    if (grad_depths != nullptr) {
      for (int i = threadIdx.x; i < in_tile; i += kThreads) {
        const float* direction = directions + 3 * (first_ray + (tile + i) / samples);
        grad_depths[sample + i] =
            direction[0] * staged[3 * i] + direction[1] * staged[3 * i + 1] + direction[2] * staged[3 * i + 2];
      }
    }
    __syncthreads();
  }
  sum_lanes(sums, 1, group);
  if (own_ray < block_rays && threadIdx.x % group == 0) {
#pragma unroll
    for (int c = 0; c < 3; c++) {
      grad_origins[3 * (first_ray + own_ray) + c] = sums[c];
      grad_directions[3 * (first_ray + own_ray) + c] = sums[3 + c];
    }
  }
}

void check_samples(int64_t samples) {
  if (samples > std::numeric_limits<int>::max() / 2) throw std::invalid_argument("more than 2^30 samples on one ray");
}

}  // namespace

void stratified_points(cudaStream_t stream, Pointer u, Pointer origins, Pointer directions, Pointer depths,
                       Pointer points, int64_t images, int64_t rays, int64_t samples, bool shared_origin, double t_near,
                       double t_far) {
  check_samples(samples);
  const int block_rays = rays_a_block(samples);
  const dim3 grid(blocks_for(rays, block_rays), static_cast<unsigned>(images));
  const size_t shared = points ? shared_bytes<float>(3 * kTile) : 0;
  launch(points ? stratified_points_kernel<true> : stratified_points_kernel<false>, grid, kThreads, shared, stream,
         input<float>(u), input<float>(origins), input<float>(directions), output<float>(depths), output<float>(points),
         rays, shared_origin, stratified_range(t_near, t_far, samples), block_rays);
}

void ray_points_backward(cudaStream_t stream, Pointer grad, Pointer directions, Pointer depths, Pointer grad_origins,
                         Pointer grad_directions, Pointer grad_depths, int64_t rays, int64_t samples) {
  check_samples(samples);
  const int block_rays = rays_a_block(samples);
  int group = 1;  // lanes that add up a ray
  while (group < 32 && 2 * group * block_rays <= kThreads) group *= 2;
  launch(ray_points_backward_kernel, blocks_for(rays, block_rays), kThreads,
         shared_bytes<float>(3 * kTile) + shared_bytes<float>(kTile), stream, input<float>(grad),
         input<float>(directions), input<float>(depths), output<float>(grad_origins), output<float>(grad_directions),
         output<float>(grad_depths), rays, samples, block_rays, group);
}

}  // namespace cips3d

// Gradients of render_rays by recomputation: from a ray's depths and transmittances the field is evaluated once more,
// two samples of eight rays a tile, from the back of the rays to the front, so that the sum over what lies behind a
// sample is a running one. Only sums over samples leave the chip: of every layer G = Σ du xᵀ and s = Σ du, for the
// phase's gradient u and the layer's input x, one partial sum a block, which a second kernel adds up in a fixed order.
#include <algorithm>

#include "layer_sums_warpgroups.h"
#include "sample_gradients_warpgroups.h"

namespace cips3d {
namespace {

constexpr int kWidth = 128, kColor = 64;

// As many tiles of samples are computed at a time as shared memory has room for what they leave to the sums; where that
// is fewer than there are warps, several of them share a tile.
template <bool kAccurate, int kTiles>
struct Block {
  using Weights = FieldWeights<kWidth, kColor, kAccurate>;
  using Buffers = StepBuffers<kWidth, kColor, kAccurate, kTiles>;
  using Sums = LayerSums<kWidth, kColor, Buffers>;
  static constexpr size_t kShared = Weights::kBytes + Buffers::kBytes;
  static constexpr bool kFits = kShared <= kSharedOfCode;
  __device__ __forceinline__ static void publish() {}  // what threads leave in shared memory, before a barrier
};
// With warpgroups, one warp a tile.
template <int kTiles>
struct BlockOfWarpgroups {
  using Weights = FieldWeights<kWidth, kColor, false, true>;
  using Buffers = StepBuffers<kWidth, kColor, false, kTiles, true>;
  using Sums = WarpgroupLayerSums<kWidth, kColor, Buffers>;
  static constexpr size_t kShared = Weights::kBytes + Buffers::kBytes;
  static constexpr bool kFits = kHasWarpgroups && kTransposesOperands;
  static_assert(Weights::kBytes % 128 == 0, "core matrices lie in two lines");
  __device__ __forceinline__ static void publish() { fence_for_async_reads(); }
};
using WideBlock = Block<false, 8>;    // 216 KB: 9.0 and 10.0
using MiddleBlock = Block<false, 4>;  // 137 KB: 8.0
using NarrowBlock = Block<false, 2>;  // 96 KB: everywhere
using WarpgroupBlock = BlockOfWarpgroups<kBackwardWarps>;
using AccurateBlock = Block<true, 2>;  // 187 KB: 9.0 and 10.0

// Adds up what the lanes and warps of a ray have of its gradients; one of the warps stores them.
template <class Buffers>
__device__ __forceinline__ void store_ray_gradients(const Buffers& buffers, const RayState& ray, float unscale,
                                                    float* origins, float* directions, int share, int lane) {
  float sums[6] = {ray.grad_origin.x,    ray.grad_origin.y,    ray.grad_origin.z,
                   ray.grad_direction.x, ray.grad_direction.y, ray.grad_direction.z};
#pragma unroll
  for (int k = 0; k < 6; k++) {
    sums[k] += __shfl_xor_sync(~0u, sums[k], 1);
    sums[k] += __shfl_xor_sync(~0u, sums[k], 2);
  }
  buffers.sum_over_sharers(sums, 8, lane / 4, lane % 4 == 0);
  if (!ray.there || share > 0 || lane % 4 > 0) return;
#pragma unroll
  for (int k = 0; k < 3; k++) {
    origins[3 * ray.index + k] = unscale * sums[k];
    directions[3 * ray.index + k] = unscale * sums[3 + k];
  }
}

// Floats of memory that a block has for its sums, carried and final ones.
using MostSums = WideBlock::Sums;
static_assert(MostSums::kValues >= WarpgroupBlock::Sums::kValues, "");
constexpr int kBlockFloats = std::max(GradientLayout{kWidth, kColor}.size(), kBackwardThreads* MostSums::kValues);

// blockIdx.y, read anew: registers are few.
__device__ __forceinline__ int part_of_image() {
#if defined(__CUDACC__)
  int part;
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(part));
  return part;
#else
  return blockIdx.y;
#endif
}

// Of the blocks of all images.
__device__ __forceinline__ int64_t block_of_all() {
  return static_cast<int64_t>(blockIdx.x) * gridDim.y + part_of_image();
}

// Block (image, y): the yth part of an image's rays, and its sums. There may be more images than blocks along y.
template <class Block, bool kRayGradients>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    render_rays_backward_kernel(const SavedRays saved, const OutputGradients gradients, const FieldLayers layers,
                                const BackwardSettings s,
                                float* __restrict__ partial,         // [B, blocks, kBlockFloats] GradientLayout
                                float* __restrict__ grad_origins,    // [B, R, 3], with kRayGradients
                                float* __restrict__ grad_directions  // [B, R, 3]
    ) {
  if constexpr (!Block::kFits) {
    __trap();
  } else {
    using Buffers = typename Block::Buffers;
    SharedArrays shared;
    typename Block::Weights weights(shared);
    const Buffers buffers(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t image = blockIdx.x;
    weights.load(layers, image);
    if (threadIdx.x < 2) buffers.scales[threadIdx.x] = gradients.scales[threadIdx.x];
    Block::publish();
    __syncthreads();

    typename Block::Sums sums;
    clear_sums(sums, partial + block_of_all() * kBlockFloats);
    // How many samples matrix instructions add up: a sum shrinks by about 2e-8 of itself (in the emulation) an
    // instruction of 16 samples, of which the accurate mode needs three.
    constexpr int kSamplesACarry = Buffers::kParts > 1 ? 512 : 8192;
    constexpr int kRaysAStep = 8 * Buffers::kTiles;
    const int in_step = warp / Buffers::kSharers, share = warp % Buffers::kSharers;  // tile of a step, part of channels
    for (int tile = part_of_image() * s.tiles_a_part; tile < min(s.tiles, (part_of_image() + 1) * s.tiles_a_part);
         tile++) {
      const int64_t index = int64_t{tile} * kRaysAStep + in_step * 8 + lane / 4;
      RayState ray = {};
      ray.there = index < s.rays;
      ray.index = image * s.rays + min(index, s.rays - 1);
      ray.origin = load3(saved.origins + 3 * ray.index);
      ray.direction = load3(saved.directions + 3 * ray.index);
      ray.grad_sum = gradients.weight_sum == nullptr ? 0.0f : gradients.weight_sum[ray.index];
      ray.grad_depth = gradients.depth == nullptr ? 0.0f : gradients.depth[ray.index];
      load_depths(ray, saved, s, s.last);
#pragma unroll 1
      for (int later = s.last; later > 0; later -= 2) {
        differentiate_samples<kRayGradients>(weights, buffers, ray, saved, gradients, s, layers, later, 16 * in_step,
                                             share, lane);
        Block::publish();
        __syncthreads();
        sums.add(buffers, warp, lane);
        __syncthreads();
      }
      if (kRayGradients)
        store_ray_gradients(buffers, ray, 1.0f / buffers.scales[kScaleOfAll], grad_origins, grad_directions, share,
                            lane);
      const int at_a_time = max(1, kSamplesACarry / (kRaysAStep * s.samples));
      if (tile % at_a_time == at_a_time - 1) carry_sums(sums, partial + block_of_all() * kBlockFloats);
    }
    float* mine = partial + block_of_all() * kBlockFloats;
    collect_sums(sums, mine);
    __syncthreads();  // what was carried is where the sums go
    sums.store(mine, {layers.width, layers.color}, 1.0f / buffers.scales[kScaleOfColors],
               1.0f / buffers.scales[kScaleOfAll], warp, lane);
  }
}

// sums[image] = Σ over blocks of partial[image, block], in index order.
__global__ void __launch_bounds__(256)
    add_blocks_kernel(const float* __restrict__ partial,  // [B, blocks, kBlockFloats]
                      float* __restrict__ sums,           // [B, size]
                      int blocks, int size) {
  const int i = blockIdx.y * 256 + threadIdx.x;
  if (i >= size) return;
  const float* from = partial + static_cast<int64_t>(blockIdx.x) * blocks * kBlockFloats + i;
  float sum = 0.0f;
  for (int block = 0; block < blocks; block++) sum += from[static_cast<int64_t>(block) * kBlockFloats];
  sums[static_cast<int64_t>(blockIdx.x) * size + i] = sum;
}

// Calls f(Block) for the block that the current device has room for, or for the one that takes least.
template <class F>
auto with_block(bool accurate, F f) {
  if (accurate) return f(AccurateBlock{});
  const size_t room = device_limits().shared_block;
  if (WideBlock::kShared <= room) return f(WideBlock{});
  if (MiddleBlock::kShared <= room) return f(MiddleBlock{});
  return f(NarrowBlock{});
}

template <class Block, bool kRayGradients>
void launch_backward(const SavedRays& saved, const OutputGradients& gradients, const FieldLayers& layers,
                     BackwardSettings s, float* partial, float* grad_origins, float* grad_directions, float* sums,
                     int64_t blocks, cudaStream_t stream) {
  if (Block::kShared > device_limits().shared_block)
    throw std::invalid_argument("the backward needs " + std::to_string(Block::kShared) + " bytes of shared memory");
  s.tiles = static_cast<int>(ceil_div<int64_t>(s.rays, 8 * Block::Buffers::kTiles));
  s.last = s.samples - 1 + s.samples % 2;
  s.color_row = layers.color + layers.color % 2;
  s.tiles_a_part = static_cast<int>(ceil_div<int64_t>(s.tiles, blocks));
  launch(render_rays_backward_kernel<Block, kRayGradients>,
         dim3(blocks_for(s.images, 1), static_cast<unsigned>(blocks)), dim3(kBackwardThreads), Block::kShared, stream,
         saved, gradients, layers, s, partial, grad_origins, grad_directions);
  const GradientLayout layout = {layers.width, layers.color};
  launch(add_blocks_kernel, dim3(blocks_for(s.images, 1), blocks_for(layout.size(), 256)), dim3(256), 0, stream,
         partial, sums, static_cast<int>(blocks), layout.size());
}

}  // namespace

int64_t render_rays_block_floats() { return kBlockFloats; }

int64_t render_rays_gradient_size(int width, int color) { return GradientLayout{width, color}.size(); }

bool render_rays_backward_fits(bool accurate) {
  return with_block(accurate, [](auto block) { return decltype(block)::kShared <= device_limits().shared_block; });
}

bool render_rays_backward_has_warpgroups() { return kTransposesOperands; }

// Not where rays have gradients too: there are no registers for them.
bool render_rays_backward_warpgroups(bool accurate, bool of_rays) {
  return render_rays_backward_has_warpgroups() && uses_warpgroups("render_rays_backward") && !accurate && !of_rays &&
         WarpgroupBlock::kShared <= device_limits().shared_block;
}

void render_rays_backward(cudaStream_t stream, Pointer origins, Pointer directions, Pointer depths,
                          Pointer transmittance, Pointer weights, Pointer noise, Pointer grad_colors,
                          Pointer grad_weight_sum, Pointer grad_depth, Pointer grad_weights, Pointer scales,
                          Pointer first_weight, Pointer first_bias, Pointer second_weight, Pointer second_bias,
                          Pointer density_weight, Pointer density_bias, Pointer color_weight, Pointer color_bias,
                          Pointer partial, Pointer sums, Pointer grad_origins, Pointer grad_directions, int64_t images,
                          int64_t rays, int samples, int width, int color, double ball_density, double ball_radius,
                          int64_t blocks, bool softplus, bool last_back, bool accurate) {
  const SavedRays saved = {input<float>(origins),       input<float>(directions), input<float>(depths),
                           input<float>(transmittance), input<float>(weights),    input<float>(noise)};
  const OutputGradients gradients = {input<float>(grad_colors), input<float>(grad_weight_sum), input<float>(grad_depth),
                                     input<float>(grad_weights), input<float>(scales)};
  const FieldLayers layers =
      field_layers(first_weight, first_bias, second_weight, second_bias, density_weight, density_bias, color_weight,
                   color_bias, width, color, ball_density, ball_radius);
  const BackwardSettings s = {images, rays, samples, softplus, last_back};
  const auto run = [&](auto launch) {
    launch(saved, gradients, layers, s, output<float>(partial), output<float>(grad_origins),
           output<float>(grad_directions), output<float>(sums), blocks, stream);
  };
  if (render_rays_backward_warpgroups(accurate, grad_origins)) return run(launch_backward<WarpgroupBlock, false>);
  with_block(accurate, [&](auto block) {
    using Block = decltype(block);
    run(grad_origins ? launch_backward<Block, true> : launch_backward<Block, false>);
  });
}

}  // namespace cips3d

// modulated_inr: packs the layers for the images, then takes pixels through all of them (modulated_inr.h).
#include "modulated_inr_warpgroups.h"

namespace cips3d {
namespace {

// 128 pixels share every slab of weights: with 64, reading them from L2 would take longer than their products. Slabs of
// 16 where 163 KB of shared memory are all there is (8.0), 64 pixels where 99 KB are (8.6, 8.9, 12.0; SmallAccuratePass
// fills them), and for pictures too small to keep all multiprocessors busy otherwise. High and low parts take as much
// as twice the pixels.
using FastPass = InrPass<128, 32, false>;
using NarrowPass = InrPass<128, 16, false>;
using SmallPass = InrPass<64, 16, false>;
using AccuratePass = InrPass<64, 16, true>;
using SmallAccuratePass = InrPass<32, 16, true>;
constexpr int kWidestSlab = 32;

// The layers as the caller gives them, contiguous float32: L layers of width W, the first on F features.
struct InrTensors {
  const float* first_weight;       // [F, W]
  const float* hidden_weight;      // [L - 1, W, W]
  const float* first_modulation;   // [B, F]
  const float* hidden_modulation;  // [B, L - 1, W]
  const float* demodulation;       // [B, L, W]
  const float* rgb_weight;         // [R, 3, W] of the last R blocks
  int channels, width, layers;     // F, W, L
  int rgb_from;

  __host__ __device__ int inputs(int layer) const { return layer == 0 ? channels : width; }
  __device__ __forceinline__ const float* weight(int layer) const {
    return layer == 0 ? first_weight : hidden_weight + static_cast<int64_t>(layer - 1) * width * width;
  }
  __device__ __forceinline__ const float* modulation(int64_t image, int layer) const {
    return layer == 0 ? first_modulation + image * channels
                      : hidden_modulation + (image * (layers - 1) + layer - 1) * width;
  }
};

// Where the slabs of a layer are: of all chunks of its columns, one after the other. Within a slab the inputs of a
// column follow each other, all of them, or eight by eight as core matrices have them (warpgroup.h).
struct SlabOrder {
  int slab, chunks, first, others;  // input channels of a slab; slabs of a chunk of the first layer, and of the others
  bool core_matrices;

  SlabOrder(int slab, bool core_matrices, int channels, int width)
      : slab(slab),
        chunks(ceil_div(width, kStreamColumns)),
        first(ceil_div(channels, slab)),
        others(ceil_div(whole_strips(width), slab)),
        core_matrices(core_matrices) {}
  __host__ __device__ int of(int layer) const { return layer == 0 ? first : others; }
  __host__ __device__ int before(int layer) const { return layer == 0 ? 0 : chunks * (first + (layer - 1) * others); }
};

int columns_at_a_time(int width) { return std::min(whole_strips(width), kStreamColumns); }

// What packing writes, and the places for skips; one array after the other, the widest elements first.
struct InrWorkspace {
  uint4* skips;        // [blocks of threads, units]
  float4* rgb_weight;  // [R, kInrWidth]
  float2* scales;      // [B, L, kInrWidth]
  float* unscale;      // [L, kInrWidth] what undoes the scale of a column of weights
  half* slabs;
  float* first_modulation;  // [B, F]
  int64_t bytes;

  InrWorkspace(Pointer memory, int64_t images, int channels, int width, int layers, int colors, bool accurate,
               int64_t skip_units) {
    const int64_t inputs = ceil_div(channels, kWidestSlab) * kWidestSlab + (layers - 1) * int64_t{whole_strips(width)};
    const int64_t columns = ceil_div(width, kStreamColumns) * columns_at_a_time(width);
    skips = output<uint4>(memory);
    rgb_weight = reinterpret_cast<float4*>(skips + skip_units);
    scales = reinterpret_cast<float2*>(rgb_weight + colors * kInrWidth);
    unscale = reinterpret_cast<float*>(scales + images * layers * kInrWidth);
    slabs = reinterpret_cast<half*>(unscale + layers * kInrWidth);
    first_modulation = reinterpret_cast<float*>(slabs + inputs * columns * (accurate ? 2 : 1));
    bytes = reinterpret_cast<Pointer>(first_modulation + images * channels) - memory;
  }
};

constexpr int kPackWarps = 8;

// A block packs 32 columns of a matrix, a lane one of them: block (columns / 32, layer). Columns are scaled by a power
// of two, so that what float16 cannot hold of small weights is small against the column's largest.
template <bool kAccurate>
__global__ void __launch_bounds__(32 * kPackWarps)
    pack_inr_weights_kernel(const InrTensors from, const SlabOrder order, int columns,  // at a time
                            half* __restrict__ slabs,                                   // see Slabs
                            float* __restrict__ unscale) {                              // [L, kInrWidth]
  constexpr int kParts = kAccurate ? 2 : 1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, layer = blockIdx.y, column = blockIdx.x * 32 + lane;
  const int inputs = from.inputs(layer), slab_count = order.of(layer);
  const float* weight = from.weight(layer) + column;
  const auto read = [&](int k) {
    return column < from.width && k < inputs ? weight[static_cast<int64_t>(k) * from.width] : 0.0f;
  };
  SharedArrays shared;
  float* of_warps = shared.take<float>(32 * kPackWarps);
  float largest = 0.0f;
  for (int k = warp; k < inputs; k += kPackWarps) largest = fmaxf(largest, fabsf(read(k)));
  of_warps[threadIdx.x] = largest;
  __syncthreads();
  for (int i = 0; i < kPackWarps; i++) largest = fmaxf(largest, of_warps[i * 32 + lane]);
  const float scale = operand_scale(largest);
  if (warp == 0) unscale[layer * kInrWidth + column] = inverse_scale(scale);

  const int chunk = column / columns;
  for (int k = 8 * warp; k < slab_count * order.slab; k += 8 * kPackWarps) {
    uint32_t high[4], low[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++)
      pack_activations<kAccurate>(scale * read(k + 2 * i), scale * read(k + 2 * i + 1), high[i], low[i]);
    const int64_t slab = order.before(layer) + chunk * slab_count + k / order.slab;
    half* to = slabs + slab * kParts * columns * order.slab;
    to += order.core_matrices ? (k % order.slab / 8 * columns + column % columns) * 8
                              : column % columns * order.slab + k % order.slab;
    *reinterpret_cast<uint4*>(to) = make_uint4(high[0], high[1], high[2], high[3]);
    if (kAccurate) *reinterpret_cast<uint4*>(to + columns * order.slab) = make_uint4(low[0], low[1], low[2], low[3]);
  }
}

// The power of two that brings the largest of a block's numbers to [1/2, 1).
__device__ __forceinline__ float modulation_scale(float largest, float* of_warps) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, bit));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int i = 0; i < kInrWidth / 32; i++) largest = fmaxf(largest, of_warps[i]);
  return operand_scale(largest) * 0x1p-15f;
}

// What belongs to an image: block (image, layer), a thread a channel; with image 0 the colours' weights.
__global__ void __launch_bounds__(kInrWidth)
    pack_inr_scales_kernel(const InrTensors from, const float* __restrict__ unscale,
                           float* __restrict__ first_modulation, float2* __restrict__ scales,
                           float4* __restrict__ rgb_weight) {
  const int channel = threadIdx.x, layer = blockIdx.y;
  const int64_t image = blockIdx.x;
  SharedArrays shared;
  float* of_warps = shared.take<float>(2 * kInrWidth / 32);
  const auto modulation = [&](int of) {
    return of < from.layers && channel < from.inputs(of) ? from.modulation(image, of)[channel] : 0.0f;
  };
  const float own = modulation(layer), next = modulation(layer + 1);
  const float own_scale = modulation_scale(fabsf(own), of_warps);
  const float next_scale = modulation_scale(fabsf(next), of_warps + kInrWidth / 32);
  if (layer == 0 && channel < from.channels) first_modulation[image * from.channels + channel] = own_scale * own;
  const bool there = channel < from.width;
  const float demodulation =
      there ? from.demodulation[(image * from.layers + layer) * from.width + channel] * inverse_scale(own_scale) : 0.0f;
  scales[(image * from.layers + layer) * kInrWidth + channel] =
      make_float2(there ? demodulation * unscale[layer * kInrWidth + channel] : 0.0f, next_scale * next);
  const int color = layer / 2 - from.rgb_from;
  if (image > 0 || layer % 2 == 0 || color < 0) return;
  const float* rgb = from.rgb_weight + static_cast<int64_t>(color) * 3 * from.width + channel;
  rgb_weight[color * kInrWidth + channel] =
      there ? make_float4(rgb[0], rgb[from.width], rgb[2 * from.width], 0.0f) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// How the work is cut, and the kernel that does it.
struct InrPlan {
  void (*kernel)(InrLayers) = nullptr;              // null: there is no room for any
  int rows = 0, slab = 0, stages = 0, threads = 0;  // pixels and threads of a block, its stages of weights
  bool warpgroups = false;
  int cluster = 1;    // blocks that share weights
  size_t shared = 0;  // bytes of a block
  int64_t block_skip_units = 0, blocks = 0;
  double time = 0.0;

  int64_t skip_units() const { return blocks * block_skip_units; }
};

// What a pass costs besides its rows, as a number of rows that take as long.
constexpr double kAPass = 10.0;

// Makes the best of two plans, where a row of the second takes `a_row` of another one's time.
void consider(InrPlan& best, InrPlan plan, const DeviceLimits& device, int64_t images, int64_t pixels, double a_row) {
  const int64_t tiles = ceil_div<int64_t>(images * ceil_div<int64_t>(pixels, plan.rows), plan.cluster);  // of a cluster
  const int clusters = device.multiprocessors / plan.cluster;
  plan.blocks = plan.cluster * std::min<int64_t>(tiles, clusters);
  plan.time = double(ceil_div<int64_t>(tiles, clusters)) * (a_row * plan.rows + kAPass);
  if (best.kernel == nullptr || plan.time < best.time) best = plan;
}

template <class Pass>
void consider(InrPlan& best, const DeviceLimits& device, int64_t images, int64_t pixels) {
  using Product = typename Pass::Product;
  for (const int stages : {3, 2}) {
    if (Pass::bytes(stages) > device.shared_block) continue;
    const InrPlan plan = {modulated_inr_kernel<Pass>, Product::kRows,  Product::kSlab, stages, kStreamThreads, false, 1,
                          Pass::bytes(stages),        Pass::kSkipUnits};
    return consider(best, plan, device, images, pixels, 1.0);
  }
}

// a_row: as in `consider`, with clusters and without.
template <bool kAccurate>
void consider_warpgroups(InrPlan& best, const DeviceLimits& device, int64_t images, int64_t pixels, int width,
                         double a_row_of_cluster, double a_row) {
  using Pass = WarpgroupPass<kAccurate>;
  // Their chunks are whole ones, so of other widths they would compute more than there is.
  if (!uses_warpgroups("modulated_inr") || whole_strips(width) % kStreamColumns != 0 ||
      device.shared_block < Pass::kBytes)
    return;
  for (const int cluster : {2, 1}) {
    if (cluster > 1 && !uses_clusters()) continue;
    const InrPlan plan = {modulated_inr_warpgroups_kernel<Pass>,
                          Pass::kRows,
                          Pass::kSlab,
                          Pass::kStages,
                          Pass::kThreads,
                          true,
                          cluster,
                          Pass::kBytes,
                          Pass::kSkipUnits};
    consider(best, plan, device, images, pixels, cluster > 1 ? a_row_of_cluster : a_row);
  }
}

InrPlan plan_inr(int64_t images, int64_t pixels, int width, bool accurate) {
  const DeviceLimits device = device_limits();
  InrPlan best;
  if (accurate) {
    consider<AccuratePass>(best, device, images, pixels);
    consider<SmallAccuratePass>(best, device, images, pixels);
    consider_warpgroups<true>(best, device, images, pixels, width, 0.65, 0.9);  // predictions, like those below
  } else {
    consider<FastPass>(best, device, images, pixels);
    consider<NarrowPass>(best, device, images, pixels);  // as good as the one before, so only where that has no room
    consider<SmallPass>(best, device, images, pixels);
    consider_warpgroups<false>(best, device, images, pixels, width, 0.6, 0.67);
  }
  return best;
}

}  // namespace

int modulated_inr_rows(int64_t images, int64_t pixels, int width, bool accurate) {
  return plan_inr(images, pixels, width, accurate).rows;
}

bool modulated_inr_warpgroups(int64_t images, int64_t pixels, int width, bool accurate) {
  return plan_inr(images, pixels, width, accurate).warpgroups;
}

int modulated_inr_cluster(int64_t images, int64_t pixels, int width, bool accurate) {
  return plan_inr(images, pixels, width, accurate).cluster;
}

int64_t modulated_inr_workspace(int64_t images, int64_t pixels, int channels, int width, int layers, int colors,
                                bool accurate) {
  const InrPlan plan = plan_inr(images, pixels, width, accurate);
  return InrWorkspace(0, images, channels, width, layers, colors, accurate, plan.skip_units()).bytes;
}

void modulated_inr(cudaStream_t stream, Pointer features, Pointer first_weight, Pointer hidden_weight,
                   Pointer first_modulation, Pointer hidden_modulation, Pointer demodulation, Pointer rgb_weight,
                   Pointer workspace, Pointer rgb, int64_t images, int64_t pixels, int channels, int width, int layers,
                   int skip_from, int rgb_from, double slope, bool accurate) {
  if (images * pixels > int64_t{1} << 30) throw std::invalid_argument("more than 2^30 pixels");
  const InrPlan plan = plan_inr(images, pixels, width, accurate);
  if (plan.kernel == nullptr) throw std::invalid_argument("the activations of a pass do not fit into shared memory");
  const InrTensors tensors = {input<float>(first_weight),
                              input<float>(hidden_weight),
                              input<float>(first_modulation),
                              input<float>(hidden_modulation),
                              input<float>(demodulation),
                              input<float>(rgb_weight),
                              channels,
                              width,
                              layers,
                              rgb_from};
  const InrWorkspace packed(workspace, images, channels, width, layers, layers / 2 - rgb_from, accurate,
                            plan.skip_units());
  const SlabOrder order(plan.slab, plan.warpgroups, channels, width);
  const int columns = columns_at_a_time(width);
  const dim3 pack_grid(order.chunks * columns / 32, layers), pack_block(32 * kPackWarps);
  launch(accurate ? pack_inr_weights_kernel<true> : pack_inr_weights_kernel<false>, pack_grid, pack_block,
         shared_bytes<float>(32 * kPackWarps), stream, tensors, order, columns, packed.slabs, packed.unscale);
  launch(pack_inr_scales_kernel, dim3(blocks_for(images, 1), layers), dim3(kInrWidth),
         shared_bytes<float>(2 * kInrWidth / 32), stream, tensors, packed.unscale, packed.first_modulation,
         packed.scales, packed.rgb_weight);
  const InrLayers planned = {{packed.slabs, order.before(layers), columns, plan.stages, 0, 0},
                             input<float>(features),
                             packed.first_modulation,
                             packed.scales,
                             packed.rgb_weight,
                             packed.skips,
                             output<float>(rgb),
                             static_cast<int>(images),
                             static_cast<int>(pixels),
                             channels,
                             whole_strips(width),
                             layers,
                             skip_from,
                             rgb_from,
                             static_cast<float>(slope)};
  launch_clusters(plan.kernel, plan.cluster, dim3(blocks_for(plan.blocks, 1)), dim3(plan.threads), plan.shared, stream,
                  planned);
}

}  // namespace cips3d

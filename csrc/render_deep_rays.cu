// render_rays for a deep field: packs the field's layers for the images, then marches along the rays.
#include "deep_field.h"

namespace cips3d {
namespace {

// High and low parts of 64 samples take as much shared memory as float16 alone of 128, and so do their weights if slabs
// are half as wide.
using FastField = DeepField<128, 32, false>;
using AccurateField = DeepField<64, 16, true>;
using SmallField = DeepField<64, 16, false>;  // where FastField has no room: 99 KB of shared memory (8.6, 8.9, 12.0)
constexpr int kWidestSlab = 32;

// The layers as the caller gives them, contiguous float32; L sine layers of width W, a colour layer of C.
struct DeepTensors {
  const float* first_weight;    // [W, 3]
  const float* hidden_weight;   // [L - 1, W, W]
  const float* trunk_bias;      // [L, W]
  const float* trunk_gain;      // [B, L, W]
  const float* trunk_shift;     // [B, L, W]
  const float* density_weight;  // [W]
  const float* color_weight;    // [C, 3 + W] the direction first
  const float* color_bias;      // [C]
  const float* color_gain;      // [B, C]
  const float* color_shift;     // [B, C]
  const float* head_weight;     // [3, C]
  int depth, width, color;      // L, W, C
};

// What packing writes, one array after the other. Floats come first: halves need no alignment that they could break.
struct DeepWorkspace {
  float4* first;       // [B, kDeepWidth]
  float4* heads;       // [kDeepWidth]
  float2* modulation;  // [B, L, kDeepWidth]
  float* unscale;      // [L, kDeepWidth] what undoes the scale of a row of weights
  half* slabs;
  int64_t bytes;

  DeepWorkspace(Pointer memory, int64_t images, int depth, int width, int color, bool accurate) {
    const int64_t columns = std::max(whole_strips(width), whole_strips(color)), parts = accurate ? 2 : 1;
    // All products have `width` columns, and the last one a slab of the direction besides.
    const int64_t rows = static_cast<int64_t>(depth) * whole_strips(width) + kWidestSlab;
    first = output<float4>(memory);
    heads = first + images * kDeepWidth;
    modulation = reinterpret_cast<float2*>(heads + kDeepWidth);
    unscale = reinterpret_cast<float*>(modulation + images * depth * kDeepWidth);
    slabs = reinterpret_cast<half*>(unscale + depth * kDeepWidth);
    bytes = reinterpret_cast<Pointer>(slabs + rows * columns * parts) - memory;
  }
};

// A warp packs one row of a matrix: block (row, product). Rows are scaled by a power of two, so that what float16
// cannot hold of small weights is small against the row's largest.
template <class Field>
__global__ void __launch_bounds__(32) pack_weights_kernel(const DeepTensors from,
                                                          half* __restrict__ slabs,    // see Slabs
                                                          float* __restrict__ unscale  // [L, kDeepWidth]
) {
  constexpr int kSlab = Field::Product::kSlab, kParts = Field::Product::kParts;
  const int row = blockIdx.x, product = blockIdx.y, lane = threadIdx.x;
  const bool color = product + 1 == from.depth;
  const int padded = whole_strips(from.width), columns = gridDim.x;
  const int rows = color ? from.color : from.width;
  const float* weight = color ? from.color_weight + static_cast<int64_t>(row) * (from.width + 3)
                              : from.hidden_weight + (static_cast<int64_t>(product) * from.width + row) * from.width;
  // Column k of the operand: the trunk's activations, and from `padded` on the direction.
  const auto read = [&](int k) {
    if (row >= rows) return 0.0f;
    if (k < padded) return k < from.width ? weight[color ? 3 + k : k] : 0.0f;
    return k < padded + 3 ? weight[k - padded] : 0.0f;
  };
  const int depth = color ? padded + kSlab : padded;
  float largest = 0.0f;
  for (int k = lane; k < depth; k += 32) largest = fmaxf(largest, fabsf(read(k)));
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, bit));
  const float scale = operand_scale(largest);
  if (lane == 0 && row < kDeepWidth) unscale[product * kDeepWidth + row] = inverse_scale(scale);
  for (int k = lane; k < depth; k += 32) {
    const int64_t slab = static_cast<int64_t>(product) * (padded / kSlab) + k / kSlab;
    half* to = slabs + (slab * kParts * columns + row) * kSlab + k % kSlab;
    const float value = scale * read(k);
    const half high = __float2half_rn(value);
    *to = high;
    if (kParts > 1) to[columns * kSlab] = __float2half_rn(value - __half2float(high));
  }
}

// What belongs to an image: block (product, image); the last block of x has the first layer, and image 0's the heads.
__global__ void __launch_bounds__(kDeepWidth)
    pack_modulation_kernel(const DeepTensors from, const float* __restrict__ unscale, float4* __restrict__ first,
                           float4* __restrict__ heads, float2* __restrict__ modulation) {
  const int channel = threadIdx.x, product = blockIdx.x, depth = from.depth;
  const int64_t image = blockIdx.y;
  if (product == depth) {
    const bool in_trunk = channel < from.width, in_color = channel < from.color;
    float4 phase = {};
    if (in_trunk) {
      const int64_t at = image * depth * from.width + channel;
      const float gain = from.trunk_gain[at];
      const float* w = from.first_weight + 3 * channel;
      phase = make_float4(gain * w[0], gain * w[1], gain * w[2],
                          fmaf(gain, from.trunk_bias[channel], from.trunk_shift[at]));
    }
    first[image * kDeepWidth + channel] = phase;
    if (image > 0) return;
    heads[channel] =
        make_float4(in_trunk ? from.density_weight[channel] : 0.0f, in_color ? from.head_weight[channel] : 0.0f,
                    in_color ? from.head_weight[from.color + channel] : 0.0f,
                    in_color ? from.head_weight[2 * from.color + channel] : 0.0f);
    return;
  }
  const bool color = product + 1 == depth;
  float2 phase = {};
  if (channel < (color ? from.color : from.width)) {
    const int64_t at = color ? image * from.color + channel : (image * depth + product + 1) * from.width + channel;
    const float gain = (color ? from.color_gain : from.trunk_gain)[at];
    const float shift = (color ? from.color_shift : from.trunk_shift)[at];
    const float bias = color ? from.color_bias[channel] : from.trunk_bias[(product + 1) * from.width + channel];
    phase = make_float2(gain * unscale[product * kDeepWidth + channel], fmaf(gain, bias, shift));
  }
  modulation[(image * depth + product) * kDeepWidth + channel] = phase;
}

// Three stages where that leaves room for enough rays to fill what a block evaluates at a time, else two.
template <class Field>
Plan plan_deep(DeepLayers& layers, const RaySettings& s) {
  Plan best;
  for (const int stages : {3, 2}) {
    layers.slabs.stages = stages;
    best = plan_blocks<Field>(layers, s);
    if (best.filled > 0.8) break;
  }
  return best;
}

template <class Field>
struct FieldType {
  using Type = Field;
};

// Calls f(FieldType, layers, plan) for the field to be used on the current device; a plan without rays: for none.
template <class F>
auto with_field(bool accurate, DeepLayers layers, const RaySettings& s, F f) {
  if (accurate) {
    const Plan plan = plan_deep<AccurateField>(layers, s);
    return f(FieldType<AccurateField>{}, layers, plan);
  }
  const Plan plan = plan_deep<FastField>(layers, s);
  if (plan.rays > 0) return f(FieldType<FastField>{}, layers, plan);
  const Plan small_plan = plan_deep<SmallField>(layers, s);
  return f(FieldType<SmallField>{}, layers, small_plan);
}

}  // namespace

bool render_deep_rays_fits(int coarse, int fine, bool accurate) {
  RaySettings s = {};
  s.coarse = coarse, s.fine = fine;
  return with_field(accurate, {}, s, [](auto, const DeepLayers&, const Plan& plan) { return plan.rays > 0; });
}

int64_t render_deep_rays_workspace(int64_t images, int depth, int width, int color, bool accurate) {
  return DeepWorkspace(0, images, depth, width, color, accurate).bytes;
}

void render_deep_rays(cudaStream_t stream, Pointer origins, Pointer directions, Pointer stratified, Pointer importance,
                      Pointer coarse_noise, Pointer merged_noise, Pointer first_weight, Pointer hidden_weight,
                      Pointer trunk_bias, Pointer trunk_gain, Pointer trunk_shift, Pointer density_weight,
                      Pointer density_bias, Pointer color_weight, Pointer color_bias, Pointer color_gain,
                      Pointer color_shift, Pointer head_weight, Pointer head_bias, Pointer workspace, Pointer colors,
                      Pointer weight_sum, Pointer depth_sum, Pointer weights, Pointer depths, int64_t images,
                      int64_t rays, int coarse, int fine, int depth, int width, int color, double near, double far,
                      bool softplus, bool last_back, bool accurate) {
  const RayTensors of_rays = {input<float>(origins),    input<float>(directions),   input<float>(stratified),
                              input<float>(importance), input<float>(coarse_noise), input<float>(merged_noise),
                              output<float>(colors),    output<float>(weight_sum),  output<float>(depth_sum),
                              output<float>(weights),   output<float>(depths),      nullptr};
  const DeepTensors tensors = {input<float>(first_weight),
                               input<float>(hidden_weight),
                               input<float>(trunk_bias),
                               input<float>(trunk_gain),
                               input<float>(trunk_shift),
                               input<float>(density_weight),
                               input<float>(color_weight),
                               input<float>(color_bias),
                               input<float>(color_gain),
                               input<float>(color_shift),
                               input<float>(head_weight),
                               depth,
                               width,
                               color};
  const DeepWorkspace packed(workspace, images, depth, width, color, accurate);
  const DeepLayers layers = {{packed.slabs, 0, std::max(whole_strips(width), whole_strips(color)), 0},
                             packed.first,
                             packed.modulation,
                             packed.heads,
                             input<float>(density_bias),
                             input<float>(head_bias),
                             depth,
                             whole_strips(width),
                             whole_strips(color)};
  const RaySettings s = {images,   rays,     coarse, fine, 0, static_cast<float>(near), static_cast<float>(far),
                         softplus, last_back};
  with_field(accurate, layers, s, [&](auto type, DeepLayers planned, const Plan& plan) {
    using Field = typename decltype(type)::Type;
    planned.slabs.count = depth * (planned.width / Field::Product::kSlab) + 1;
    launch(pack_weights_kernel<Field>, dim3(planned.slabs.columns, depth), dim3(32), 0, stream, tensors, packed.slabs,
           packed.unscale);
    launch(pack_modulation_kernel, dim3(depth + 1, blocks_for(images, 1)), dim3(kDeepWidth), 0, stream, tensors,
           packed.unscale, packed.first, packed.heads, packed.modulation);
    launch_rays<Field>(of_rays, planned, s, plan, stream);
  });
}

}  // namespace cips3d

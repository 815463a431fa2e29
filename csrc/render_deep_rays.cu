// render_rays for a deep field: packs the field's layers for the images, then marches along the rays.
#include "pack_field.h"
#include "streamed_field_warpgroups.h"

namespace cips3d {
namespace {

// High and low parts of 64 samples take as much shared memory as float16 alone of 128, and so do their weights if slabs
// are half as wide. The last is for devices with 99 KB of shared memory (8.6, 8.9, 12.0).
template <class F>
auto with_deep_field(bool accurate, const StreamedLayers& layers, const RaySettings& s, F f) {
  const Plan plan = plan_warpgroups<true>(layers, s, accurate);
  if (plan.rays > 0) return f(FieldType<WarpgroupStreamedField<true>>{}, layers, plan);
  if (accurate) return with_field<StreamedField<64, 16, true, true>, StreamedField<32, 16, true, true>>(layers, s, f);
  return with_field<StreamedField<128, 32, false, true>, StreamedField<64, 16, false, true>>(layers, s, f);
}

}  // namespace

bool render_deep_rays_warpgroups(int coarse, int fine, int depth, int width, int color, bool accurate) {
  RaySettings s = {};
  s.coarse = coarse, s.fine = fine;
  return plan_warpgroups<true>(layer_sizes(depth, width, color), s, accurate).rays > 0;
}

int64_t render_deep_rays_workspace(int64_t images, int depth, int width, int color, bool accurate) {
  return packed_field_bytes(images, depth, width, color, true, accurate);
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
  const Pointer hidden_bias = trunk_bias + sizeof(float) * width;  // trunk_bias [L, W]
  const FieldTensors tensors =
      field_tensors(first_weight, trunk_bias, hidden_weight, hidden_bias, trunk_gain, trunk_shift, density_weight,
                    color_weight, color_bias, color_gain, color_shift, head_weight, depth, width, color);
  const RaySettings s = ray_settings(images, rays, coarse, fine, near, far, softplus, last_back);
  with_deep_field(accurate, layer_sizes(depth, width, color), s,
                  [&](auto type, const StreamedLayers& planned, const Plan& plan) {
                    using Field = typename decltype(type)::Type;
                    StreamedLayers layers = pack_field(stream, tensors, images, SlabFormat::of<Field>(), workspace);
                    layers.slabs.stages = planned.slabs.stages;
                    layers.density_bias = input<float>(density_bias), layers.head_bias = input<float>(head_bias);
                    launch_rays<Field>(of_rays, layers, s, plan, stream);
                  });
}

}  // namespace cips3d

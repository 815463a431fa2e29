// render_rays for the NeRF branch where shared memory has no room for its weights: they stream.
#include "pack_field.h"
#include "streamed_field_warpgroups.h"

namespace cips3d {
namespace {

constexpr int kSineLayers = 2;

// Smaller blocks leave more of the shared memory to the samples' colours. Accurate layers of 128 channels are resident
// where there is room for them, which 99 KB (8.6, 8.9, 12.0) are not.
template <class F>
auto with_wide_field(bool accurate, int width, int color, const RaySettings& s, F f) {
  constexpr int kHalf = kFieldWidth / 2;
  const StreamedLayers layers = layer_sizes(kSineLayers, width, color);
  const Plan plan = plan_warpgroups<false>(layers, s, accurate);
  if (plan.rays > 0) return f(FieldType<WarpgroupStreamedField<false>>{}, layers, plan);
  if (accurate && std::max(width, color) <= kHalf)
    return with_field<StreamedField<128, 16, true, false, kHalf>, StreamedField<64, 16, true, false, kHalf>>(layers, s,
                                                                                                             f);
  if (accurate) return with_field<StreamedField<64, 16, true, false>, StreamedField<32, 16, true, false>>(layers, s, f);
  return with_field<StreamedField<128, 32, false, false>, StreamedField<64, 16, false, false>>(layers, s, f);
}

}  // namespace

bool render_wide_rays_fits(int coarse, int fine, int width, int color, bool accurate) {
  RaySettings s = {};
  s.coarse = coarse, s.fine = fine;
  return with_wide_field(accurate, width, color, s,
                         [](auto, const StreamedLayers&, const Plan& plan) { return plan.rays > 0; });
}

bool render_wide_rays_warpgroups(int coarse, int fine, int width, int color, bool accurate) {
  RaySettings s = {};
  s.coarse = coarse, s.fine = fine;
  return plan_warpgroups<false>(layer_sizes(kSineLayers, width, color), s, accurate).rays > 0;
}

int64_t render_wide_rays_workspace(int64_t images, int width, int color, bool accurate) {
  return packed_field_bytes(images, kSineLayers, width, color, false, accurate);
}

void render_wide_rays(cudaStream_t stream, Pointer origins, Pointer directions, Pointer stratified, Pointer importance,
                      Pointer coarse_noise, Pointer merged_noise, Pointer first_weight, Pointer first_bias,
                      Pointer second_weight, Pointer second_bias, Pointer density_weight, Pointer density_bias,
                      Pointer color_weight, Pointer color_bias, Pointer workspace, Pointer colors, Pointer weight_sum,
                      Pointer depth, Pointer weights, Pointer depths, Pointer transmittance, int64_t images,
                      int64_t rays, int coarse, int fine, int width, int color, double ball_density, double ball_radius,
                      double near, double far, bool softplus, bool last_back, bool accurate) {
  const RayTensors of_rays = {input<float>(origins),    input<float>(directions),   input<float>(stratified),
                              input<float>(importance), input<float>(coarse_noise), input<float>(merged_noise),
                              output<float>(colors),    output<float>(weight_sum),  output<float>(depth),
                              output<float>(weights),   output<float>(depths),      output<float>(transmittance)};
  const FieldTensors tensors = field_tensors(first_weight, first_bias, second_weight, second_bias, 0, 0, density_weight,
                                             color_weight, color_bias, 0, 0, 0, kSineLayers, width, color);
  const RaySettings s = ray_settings(images, rays, coarse, fine, near, far, softplus, last_back);
  with_wide_field(accurate, width, color, s, [&](auto type, const StreamedLayers& planned, const Plan& plan) {
    using Field = typename decltype(type)::Type;
    StreamedLayers layers = pack_field(stream, tensors, images, SlabFormat::of<Field>(), workspace);
    layers.slabs.stages = planned.slabs.stages;
    layers.density_bias = input<float>(density_bias);
    layers.ball = {static_cast<float>(ball_density), static_cast<float>(ball_radius)};
    launch_rays<Field>(of_rays, layers, s, plan, stream);
  });
}

}  // namespace cips3d

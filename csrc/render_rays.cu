// The NeRF branch as one kernel: rays, folded layers and random draws in; composited colour activations, depth, weights
// and depths out.
#include "ray_launch.h"
#include "siren_field_warpgroups.h"

namespace cips3d {
namespace {

template <int kWidth, int kColorWidth, int kTiles, bool kAccurate>
struct ShallowField {
  using Layers = FieldLayers;
  using Team = BlockTeam;
  using Color = std::conditional_t<kAccurate, float, half>;
  using Weights = FieldWeights<kWidth, kColorWidth, kAccurate>;
  static constexpr int kColorRow = kColorWidth + kPadColors<Color>;
  static constexpr int kFewestWarps = 4, kMostWarps = 8, kMostThreads = 32 * kMostWarps;
  static constexpr int kStep = 16 * kTiles;  // samples a warp evaluates at a time
  static constexpr int kRound = kAccurate ? 25 : 75;

  static int step(int warps) { return warps * kStep; }
  static constexpr bool kFits = Weights::kBytes <= kSharedOfCode;
  static size_t bytes(const Layers&) { return Weights::kBytes; }
  __host__ __device__ static constexpr int color_row(const Layers&) { return kColorRow; }
  __device__ __forceinline__ static int channels(const Layers& layers) { return layers.color; }

  const Layers& layers;
  Weights weights;

  __device__ __forceinline__ ShallowField(SharedArrays& shared, const Layers& given) : layers(given), weights(shared) {}
  __device__ __forceinline__ void begin(int64_t image) { weights.load(layers, image); }

  __device__ __forceinline__ void evaluate(const SamplePass<Color>& pass) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int base = warp * kStep; base < pass.size(); base += warps * kStep) {
      float3 points[kTiles][2];
      int at[kTiles][2];
      float ball[kTiles][2];  // now, not when the density is there: the points would take registers until then
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int row = base + 16 * m + 8 * r + lane / 4;
          const PassSample sample = pass[row];
          at[m][r] = row < pass.size() ? sample.at : -1;
          points[m][r] = sample.point;
          ball[m][r] = layers.ball.at(sample.point);
        }
      float density[kTiles][2];
      evaluate_field<kWidth, kColorWidth, kTiles, kAccurate>(
          weights, points, density, lane, [&](int m, int r, int channel, float x, float y) {
            compute_here(x), compute_here(y);
            if (at[m][r] < 0) return;
            Vector<Color, 2> pair = {{from_float<Color>(x), from_float<Color>(y)}};
            *reinterpret_cast<Vector<Color, 2>*>(pass.scratch.colors + at[m][r] * kColorRow + channel) = pair;
          });
      if (lane % 4 != 0) continue;
#pragma unroll
      for (int m = 0; m < kTiles; m++)
#pragma unroll
        for (int r = 0; r < 2; r++)
          if (at[m][r] >= 0) pass.scratch.density[at[m][r]] = density[m][r] + ball[m][r];
    }
  }
};

using FastField = ShallowField<128, 64, 2, false>;
using AccurateField = ShallowField<128, 64, 1, true>;

// Without rays where not one of them fits.
template <class Field>
Plan plan(const RaySettings& s) {
  return plan_blocks<Field>({}, s);
}
template <>
Plan plan<WarpgroupField>(const RaySettings& s) {
  return uses_warpgroups("render_rays") ? plan_blocks<WarpgroupField>({}, s) : Plan{};
}

template <class Field>
bool launch_planned(const RayTensors& tensors, const FieldLayers& layers, const RaySettings& s, cudaStream_t stream) {
  const Plan planned = plan<Field>(s);
  if (planned.rays == 0) return false;
  launch_rays<Field>(tensors, layers, s, planned, stream);
  return true;
}

}  // namespace

bool render_rays_fits(int coarse, int fine, bool accurate) {
  RaySettings s = {};
  s.coarse = coarse, s.fine = fine;
  return (accurate ? plan<AccurateField>(s).rays : plan<FastField>(s).rays) > 0;
}

bool render_rays_warpgroups(int coarse, int fine, bool accurate) {
  RaySettings s = {};
  s.coarse = coarse, s.fine = fine;
  return !accurate && plan<WarpgroupField>(s).rays > 0;
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
  const FieldLayers layers =
      field_layers(first_weight, first_bias, second_weight, second_bias, density_weight, density_bias, color_weight,
                   color_bias, width, color, ball_density, ball_radius);
  const RaySettings s = ray_settings(images, rays, coarse, fine, near, far, softplus, last_back);
  const bool launched = accurate ? launch_planned<AccurateField>(tensors, layers, s, stream)
                                 : launch_planned<WarpgroupField>(tensors, layers, s, stream) ||
                                       launch_planned<FastField>(tensors, layers, s, stream);
  if (!launched) throw std::invalid_argument("one ray's samples do not fit into shared memory");
}

}  // namespace cips3d

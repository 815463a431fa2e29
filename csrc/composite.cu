// Alpha compositing along rays: densities become weights, and samples of C channels their weighted sum; and the
// gradients of all of it. Bound by memory: the features are read once in either direction, and their gradient is
// written once. Everything else is a few numbers a sample, and the lanes of a ray's group hold one sample each.
#include "ray_samples.h"
#include "rays.h"

namespace cips3d {
namespace {

// Densities of all rays. N samples lie front to back on a ray; sample i is row order[i] of the rows as they were
// evaluated, S coarse ones, then N - S fine ones. Without an order it is row i.
struct Densities {
  const float* coarse;   // [rays, S]
  const float* fine;     // [rays, N - S]
  const float* depths;   // [rays, N] front to back
  const int64_t* order;  // [rays, N] or null
  const float* noise;    // [rays, N] front to back, or null
  int64_t rays;
  int coarse_rows;  // S
  int samples;      // N
  bool softplus;    // else relu
  bool last_back;   // the last sample takes the light that is left
};

// A sample. Where a lane has none, all light passes.
struct Sample {
  int row = 0;
  float raw = 0.0f;      // density with noise
  float density = 0.0f;  // of it, activated: σ
  float depth = 0.0f;
  float delta = 0.0f;
  float passed = 1.0f;  // exp(-δσ)
  float alpha = 0.0f;
  float factor = 1.0f;  // by which it dims the light
};

__device__ __forceinline__ Sample load_sample(const Densities& in, const RayLane& lane, int i) {
  Sample s;
  if (!lane.has_ray || i >= in.samples) return s;
  const int64_t at = lane.ray * in.samples + i;
  s.row = i;
  if (in.order != nullptr) {
    const int64_t row = in.order[at];
    if (row < 0 || row >= in.samples) __trap();  // an index out of bounds: what PyTorch's gather does there
    s.row = static_cast<int>(row);
  }
  s.raw = s.row < in.coarse_rows ? in.coarse[lane.ray * in.coarse_rows + s.row]
                                 : in.fine[lane.ray * (in.samples - in.coarse_rows) + s.row - in.coarse_rows];
  if (in.noise != nullptr) s.raw += in.noise[at];
  s.depth = in.depths[at];
  s.delta = i + 1 < in.samples ? in.depths[at + 1] - s.depth : kLastDelta;
  s.density = activated(s.raw, in.softplus);
  // Neither -expm1f nor passed + floor: the rounding is the published systems'.
  s.passed = expf(-s.delta * s.density);
  s.alpha = 1.0f - s.passed;
  s.factor = 1.0f - s.alpha + kTransmittanceFloor;
  return s;
}

// The light of a ray on its way to the back, one group of samples after the other.
struct March {
  float light = 1.0f;       // T in front of the next group of samples
  float before = 1.0f;      // T in front of this lane's sample
  float weight_sum = 0.0f;  // of this lane's samples, without what an opaque back takes

  // The weight of this lane's sample, and in `shown` what it weighs with an opaque back.
  __device__ __forceinline__ float weigh(const Densities& in, const Sample& s, int i, int index, int group,
                                         float& shown) {
    const float product = product_up_to(s.factor, index, group);
    const float in_front = __shfl_up_sync(~0u, product, 1, group);
    before = index == 0 ? light : light * in_front;
    light *= __shfl_sync(~0u, product, group - 1, group);
    const float weight = s.alpha * before;
    weight_sum += weight;
    shown = weight;
    if (in.last_back && i - index + group >= in.samples) {  // the last group, the same for all lanes
      const float left_over = 1.0f - sum_lanes(weight_sum, 1, group);
      if (i == in.samples - 1) shown += left_over;
    }
    return weight;
  }
};

template <class T, int N>
__global__ void __launch_bounds__(kRayThreads, kRayBlocks)
    composite_kernel(Densities in, const Vector<T, N>* __restrict__ features,  // [rays, S, C / N]
                     const Vector<T, N>* __restrict__ fine_features,           // [rays, N - S, C / N]
                     Vector<T, N>* __restrict__ sums,                          // [rays, C / N]
                     float* __restrict__ depth,                                // [rays]
                     float* __restrict__ weights,                              // [rays, N] front to back
                     float* __restrict__ transmittance,                        // [rays]
                     float* __restrict__ opacity,                              // [rays]
                     float white,                                              // the background
                     int vectors, RayLayout layout) {
  const int group = layout.group;
  const RayLane lane = ray_lane(group, in.rays);
  const RayRows rows = ray_rows(lane.ray, in.coarse_rows, in.samples, vectors);
  int first_vector = 0;
  do {  // mostly once: as many channels as 32 lanes take
    March march;
    float sum[N] = {}, depth_sum = 0.0f;
    const int vector = first_vector + lane.index % layout.row;
    for (int base = 0; base < in.samples; base += group) {
      const int i = base + lane.index;
      const Sample s = load_sample(in, lane, i);
      float shown;
      march.weigh(in, s, i, lane.index, group, shown);
      depth_sum += shown * s.depth;
      if (first_vector == 0 && lane.has_ray && i < in.samples) weights[lane.ray * in.samples + i] = shown;
      if (vectors > 0)
        add_rows<T, N>(sum, features, fine_features, rows, vector, shown, s.row, min(group, in.samples - base), layout,
                       lane);
    }
    const float weight_sum = sum_lanes(march.weight_sum, 1, group);
    depth_sum = sum_lanes(depth_sum, 1, group);
    sum_lanes(sum, layout.row, group);
    if (lane.has_ray && lane.index < layout.row && vector < vectors) {
      Vector<T, N> out;
#pragma unroll
      for (int e = 0; e < N; e++) out.value[e] = from_float<T>(sum[e] + white * (1.0f - weight_sum));
      sums[lane.ray * vectors + vector] = out;
    }
    if (first_vector == 0 && lane.has_ray && lane.index == 0) {
      depth[lane.ray] = depth_sum;
      transmittance[lane.ray] = march.light;
      opacity[lane.ray] = weight_sum;
    }
    first_vector += layout.row;
  } while (first_vector < vectors);
}

// Gradients of the outputs, each of them null where there is none.
struct OutputGradients {
  const float* depth;          // [rays]
  const float* weights;        // [rays, N] front to back
  const float* transmittance;  // [rays]
  const float* opacity;        // [rays]
};

// Where the gradients of the inputs go, each of them null where it is not wanted.
struct InputGradients {
  float* coarse;  // [rays, S] of the raw density
  float* fine;    // [rays, N - S]
  float* depths;  // [rays, N]
};

// What the loop to the front needs of groups of samples other than the last one.
struct Kept {
  float* before;    // [rays, N] T in front of a sample
  float* gradient;  // [rays, N] of a sample's weight
};

// Writes the gradients of depths t_i from those of the intervals, δ_i = t_{i+1} - t_i, group by group to the front.
struct DepthGradients {
  float first_behind = 0.0f;  // of the first depth of the group behind, but for the interval in front of it

  __device__ __forceinline__ void write(float* out, float of_depth, float of_delta, int i, int samples, int group,
                                        const RayLane& lane) {
    if (i >= samples - 1) of_delta = 0.0f;  // the last interval has no depth behind it
    const float own = of_depth - of_delta;
    const float in_front = __shfl_up_sync(~0u, of_delta, 1, group);
    const float group_last = __shfl_sync(~0u, of_delta, group - 1, group);
    if (!lane.has_ray) return;
    float* at = out + lane.ray * samples + i;
    if (lane.index > 0 && i < samples) *at = own + in_front;
    if (lane.index == 0 && i + group < samples) at[group] = first_behind + group_last;
    if (i == 0) *at = own;
    first_behind = own;
  }
};

// The sum of a ray's row of numbers, by the lanes of its group.
template <class T, int N>
__device__ __forceinline__ float sum_of_row(const Vector<T, N>* row, int vectors, int group, const RayLane& lane) {
  float sum = 0.0f;
  for (int v = lane.index; v < vectors && lane.has_ray; v += group) {
    const Vector<T, N> some = row[v];
#pragma unroll
    for (int e = 0; e < N; e++) sum += to_float(some.value[e]);
  }
  return sum_lanes(sum, 1, group);
}

// With G_i the gradient of a weight, dα_i = G_i T_i - (Σ_{j>i} G_j w_j + dT T) / (1 - α_i + 1e-10): one loop to the
// back for T_i and G_i, one to the front for the sums, which are added up from behind so that nothing cancels.
template <class T, int N>
__global__ void __launch_bounds__(kRayThreads, kRayBlocks)
    composite_backward_kernel(Densities in, const Vector<T, N>* __restrict__ features,  // [rays, S, C / N]
                              const Vector<T, N>* __restrict__ fine_features,           // [rays, N - S, C / N]
                              const Vector<T, N>* __restrict__ grad_sums,               // [rays, C / N] or null
                              OutputGradients grad,
                              Vector<T, N>* __restrict__ grad_features,       // [rays, S, C / N] or null
                              Vector<T, N>* __restrict__ grad_fine_features,  // [rays, N - S, C / N] or null
                              InputGradients out, Kept kept, float white, int vectors, RayLayout layout) {
  const int group = layout.group, last_base = (in.samples - 1) / group * group;
  const RayLane lane = ray_lane(group, in.rays);
  const RayRows rows = ray_rows(lane.ray, in.coarse_rows, in.samples, vectors);
  const float grad_depth = lane.has_ray && grad.depth != nullptr ? grad.depth[lane.ray] : 0.0f;
  const float grad_opacity = lane.has_ray && grad.opacity != nullptr ? grad.opacity[lane.ray] : 0.0f;

  March march;
  float shown = 0.0f, gradient = 0.0f;
  for (int base = 0; base < in.samples; base += group) {
    const int i = base + lane.index;
    const int64_t at = lane.ray * in.samples + i;
    const bool has_sample = lane.has_ray && i < in.samples;
    const Sample s = load_sample(in, lane, i);
    march.weigh(in, s, i, lane.index, group, shown);
    gradient = grad_depth * s.depth + grad_opacity;
    if (grad.weights != nullptr && has_sample) gradient += grad.weights[at];
    // The background adds 1 - Σ w to every channel: the same as compositing features - 1.
    if (grad_sums != nullptr)
      gradient += differentiate_rows<T, N>(grad_sums + lane.ray * vectors, features, fine_features, grad_features,
                                           grad_fine_features, rows, shown, s.row, min(group, in.samples - base), white,
                                           layout, lane);
    if (base < last_base && has_sample) {
      kept.before[at] = march.before;
      kept.gradient[at] = gradient;
    }
  }

  // An opaque back shows 1 - Σ of the others: each of theirs is as much less of its own. Opacity and background go by
  // the weights as they were before.
  float of_back = 0.0f;
  if (in.last_back) {
    of_back = __shfl_sync(~0u, gradient, in.samples - 1 - last_base, group) - grad_opacity;
    if (white != 0.0f && grad_sums != nullptr)
      of_back += white * sum_of_row<T, N>(grad_sums + lane.ray * vectors, vectors, group, lane);
  }
  float behind = lane.has_ray && grad.transmittance != nullptr ? grad.transmittance[lane.ray] * march.light : 0.0f;
  DepthGradients depth_gradients;
  for (int base = last_base; base >= 0; base -= group) {
    const int i = base + lane.index;
    const bool has_sample = lane.has_ray && i < in.samples;
    const Sample s = load_sample(in, lane, i);  // anew: registers are scarcer than what the caches deliver
    if (base < last_base) {
      const int64_t at = lane.ray * in.samples + i;
      march.before = has_sample ? kept.before[at] : 0.0f;
      gradient = has_sample ? kept.gradient[at] : 0.0f;
      shown = s.alpha * march.before;
    }
    const float weight = s.alpha * march.before;
    const float of_weight = gradient - of_back;
    const float from_here = sum_from(of_weight * weight, lane.index, group);
    float after = __shfl_down_sync(~0u, from_here, 1, group);
    if (lane.index == group - 1) after = 0.0f;
    const float of_optical_depth = (of_weight * march.before - (after + behind) / s.factor) * s.passed;  // of δσ
    behind += __shfl_sync(~0u, from_here, 0, group);
    if (out.coarse != nullptr && has_sample) {
      const float of_density = of_optical_depth * s.delta * activation_slope(s.raw, in.softplus);
      if (s.row < in.coarse_rows)
        out.coarse[lane.ray * in.coarse_rows + s.row] = of_density;
      else
        out.fine[lane.ray * (in.samples - in.coarse_rows) + s.row - in.coarse_rows] = of_density;
    }
    if (out.depths != nullptr)
      depth_gradients.write(out.depths, grad_depth * shown, of_optical_depth * s.density, i, in.samples, group, lane);
  }
}

Densities densities(Pointer density, Pointer fine_density, Pointer depths, Pointer order, Pointer noise, int64_t rays,
                    int64_t coarse, int64_t samples, int64_t channels, bool softplus, bool last_back) {
  check_ray(samples, channels);
  return {input<float>(density),
          input<float>(fine_density),
          input<float>(depths),
          input<int64_t>(order),
          input<float>(noise),
          rays,
          static_cast<int>(coarse),
          static_cast<int>(samples),
          softplus,
          last_back};
}

}  // namespace

void composite(cudaStream_t stream, int dtype, Pointer density, Pointer fine_density, Pointer depths, Pointer order,
               Pointer noise, Pointer features, Pointer fine_features, Pointer sums, Pointer depth, Pointer weights,
               Pointer transmittance, Pointer opacity, int64_t rays, int64_t coarse, int64_t samples, int64_t channels,
               bool softplus, bool last_back, bool white_back) {
  const Densities in =
      densities(density, fine_density, depths, order, noise, rays, coarse, samples, channels, softplus, last_back);
  const Pointer fine_rows = fine_features ? fine_features : features;
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    for_widest_vector<T>(channels, {input<T>(features), input<T>(fine_rows), input<T>(sums)}, [&](auto width) {
      using Row = Vector<T, decltype(width)::value>;
      const int64_t vectors = channels / decltype(width)::value;
      const RayLayout layout = ray_layout(samples, vectors);
      launch(composite_kernel<T, decltype(width)::value>, ray_blocks(rays, layout), kRayThreads, 0, stream, in,
             input<Row>(features), input<Row>(fine_rows), output<Row>(sums), output<float>(depth),
             output<float>(weights), output<float>(transmittance), output<float>(opacity), white_back ? 1.0f : 0.0f,
             vectors, layout);
    });
  });
}

void composite_backward(cudaStream_t stream, int dtype, Pointer density, Pointer fine_density, Pointer depths,
                        Pointer order, Pointer noise, Pointer features, Pointer fine_features, Pointer grad_sums,
                        Pointer grad_depth, Pointer grad_weights, Pointer grad_transmittance, Pointer grad_opacity,
                        Pointer out_density, Pointer out_fine_density, Pointer out_depths, Pointer out_features,
                        Pointer out_fine_features, Pointer workspace, int64_t rays, int64_t coarse, int64_t samples,
                        int64_t channels, bool softplus, bool last_back, bool white_back) {
  const Densities in =
      densities(density, fine_density, depths, order, noise, rays, coarse, samples, channels, softplus, last_back);
  const OutputGradients grad{input<float>(grad_depth), input<float>(grad_weights), input<float>(grad_transmittance),
                             input<float>(grad_opacity)};
  const InputGradients out{output<float>(out_density), output<float>(out_fine_density), output<float>(out_depths)};
  const Kept kept{output<float>(workspace), output<float>(workspace) + rays * samples};
  const Pointer fine_rows = fine_features ? fine_features : features;
  const Pointer out_fine_rows = out_fine_features ? out_fine_features : out_features;
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const std::initializer_list<const void*> of_channels = {
        input<T>(features), input<T>(fine_rows), input<T>(grad_sums), input<T>(out_features), input<T>(out_fine_rows)};
    for_widest_vector<T>(channels, of_channels, [&](auto width) {
      using Row = Vector<T, decltype(width)::value>;
      const int64_t vectors = channels / decltype(width)::value;
      const RayLayout layout = ray_layout(samples, vectors);
      if (samples > layout.group && workspace == 0) throw std::invalid_argument("a workspace is missing");
      launch(composite_backward_kernel<T, decltype(width)::value>, ray_blocks(rays, layout), kRayThreads, 0, stream, in,
             input<Row>(features), input<Row>(fine_rows), input<Row>(grad_sums), grad, output<Row>(out_features),
             output<Row>(out_fine_rows), out, kept, white_back ? 1.0f : 0.0f, vectors, layout);
    });
  });
}

}  // namespace cips3d

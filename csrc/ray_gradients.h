// What the backward of render_rays keeps of a ray while it walks along it, from the back to the front, and the
// gradients of its compositing.
#pragma once
#include "ray_samples.h"

namespace cips3d {

struct SavedRays {
  const float* origins;        // [B, R, 3]
  const float* directions;     // [B, R, 3]
  const float* depths;         // [B, R, N] ascending
  const float* transmittance;  // [B, R, N] in front of each sample
  const float* weights;        // [B, R, N]
  const float* noise;          // [B, R, N] added to the densities, or null
};

struct OutputGradients {
  const float* colors;      // [B, R, C rounded up to an even number], aligned to 8 bytes
  const float* weight_sum;  // [B, R] or null
  const float* depth;       // [B, R] or null
  const float* weights;     // [B, R, N] or null
  const float* scales;      // [2] by GradientScale
};

struct BackwardSettings {
  int64_t images, rays;
  int samples;
  bool softplus, last_back;
  // The launcher gives these:
  int tiles = 0, tiles_a_part = 0;  // of an image
  int last = 0;                     // sample of the first step, the later one of two
  int color_row = 0;                // of gradients of colours, which lie in pairs
};

__device__ __forceinline__ float3 load3(const float* from) { return make_float3(from[0], from[1], from[2]); }

// One ray of a lane: what stays the same over its samples, and what runs from back to front.
struct RayState {
  float3 origin, direction;
  float depth[2];      // of the step's samples, the later one first
  float depth_behind;  // of the sample behind both
  float grad_sum, grad_depth, behind, last_gradient;
  float3 grad_origin, grad_direction;
  int64_t index;  // of the ray in [B, R]
  bool there;
};

// Has the depths of samples `later` and `later` - 1 on their way while something else is computed.
__device__ __forceinline__ void load_depths(RayState& ray, const SavedRays& saved, const BackwardSettings& s,
                                            int later) {
#pragma unroll
  for (int r = 0; r < 2; r++)
    ray.depth[r] = saved.depths[ray.index * s.samples + max(0, min(later - r, s.samples - 1))];
}

// What the compositing at a step's two samples needs from memory besides their depths.
struct SampleInputs {
  float light[2];  // transmittances
  float noise[2];
  float grad[2];  // gradients of the weights
};

// They are asked for long before they are needed.
__device__ __forceinline__ SampleInputs load_inputs(const RayState& ray, const SavedRays& saved,
                                                    const OutputGradients& gradients, const BackwardSettings& s,
                                                    int later) {
  SampleInputs inputs;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int64_t at = ray.index * s.samples + min(later - r, s.samples - 1);
    inputs.light[r] = saved.transmittance[at];
    inputs.noise[r] = saved.noise == nullptr ? 0.0f : saved.noise[at];
    inputs.grad[r] = gradients.weights == nullptr ? 0.0f : gradients.weights[at];
  }
  return inputs;
}

struct SampleGradient {
  float weight;   // what its colour is multiplied with
  float density;  // gradient of the raw density
};

// Alpha compositing at a step's two samples, backward; see the composite op. What they have to do with each other is
// only the sum over what lies behind; without branches, all else is computed side by side.
__device__ __forceinline__ void differentiate_compositing(SampleGradient (&sample)[2], RayState& ray,
                                                          const SavedRays& saved, const BackwardSettings& s, int later,
                                                          const SampleInputs& inputs, const float (&raw)[2],
                                                          const float (&grad_of_colors)[2]) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = later - r;
    const bool there = ray.there && i < s.samples, last = i + 1 == s.samples;
    const float delta = last ? kLastDelta : (r == 0 ? ray.depth_behind : ray.depth[0]) - ray.depth[r];
    const float noisy = raw[r] + inputs.noise[r];
    const float density = activated(noisy, s.softplus), slope = activation_slope(noisy, s.softplus);
    const float passed = expf(-delta * density), alpha = 1.0f - passed;
    float grad = grad_of_colors[r] + ray.grad_depth * ray.depth[r] + inputs.grad[r];
    const float weight = alpha * inputs.light[r];
    float shown = weight;
    if (s.last_back) {
      // The last sample shows 1 minus the others: it takes no gradient of its own and its gradient goes off the
      // others'.
      if (last) ray.last_gradient = grad, shown = saved.weights[ray.index * s.samples + i];
      grad -= ray.last_gradient;
    }
    grad += ray.grad_sum;  // goes by the weights without that
    const float grad_alpha = grad * inputs.light[r] - __fdividef(ray.behind, 1.0f - alpha + kTransmittanceFloor);
    ray.behind += there ? grad * weight : 0.0f;
    sample[r].weight = there ? shown : 0.0f;
    sample[r].density = there ? grad_alpha * delta * passed * slope : 0.0f;
  }
}

}  // namespace cips3d

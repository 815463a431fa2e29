// Weighted sums along rays with weights that are given, and their gradients. Bound by memory: the values are read once
// in either direction, and their gradient is written once.
#include "rays.h"

namespace cips3d {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(kRayThreads, kRayBlocks)
    accumulate_kernel(const float* __restrict__ weights,        // [rays, S]
                      const Vector<T, N>* __restrict__ values,  // [rays, S, C / N]
                      Vector<T, N>* __restrict__ sums,          // [rays, C / N]
                      int64_t rays, int samples, int vectors, RayLayout layout) {
  const RayLane lane = ray_lane(layout.group, rays);
  const RayRows rows = ray_rows(lane.ray, samples, samples, vectors);
  for (int first_vector = 0; first_vector < vectors; first_vector += layout.row) {
    const int vector = first_vector + lane.index % layout.row;
    float sum[N] = {};
    for (int base = 0; base < samples; base += layout.group) {
      const int sample = base + lane.index;
      const bool has_sample = lane.has_ray && sample < samples;
      const float weight = has_sample ? weights[lane.ray * samples + sample] : 0.0f;
      add_rows<T, N>(sum, values, values, rows, vector, weight, sample, min(layout.group, samples - base), layout,
                     lane);
    }
    sum_lanes(sum, layout.row, layout.group);
    if (lane.has_ray && lane.index < layout.row && vector < vectors) {
      Vector<T, N> out;
#pragma unroll
      for (int e = 0; e < N; e++) out.value[e] = from_float<T>(sum[e]);
      sums[lane.ray * vectors + vector] = out;
    }
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kRayThreads, kRayBlocks)
    accumulate_backward_kernel(const Vector<T, N>* __restrict__ grad,    // [rays, C / N]
                               const float* __restrict__ weights,        // [rays, S]
                               const Vector<T, N>* __restrict__ values,  // [rays, S, C / N]
                               float* __restrict__ grad_weights,         // [rays, S] or null
                               Vector<T, N>* __restrict__ grad_values,   // [rays, S, C / N] or null
                               int64_t rays, int samples, int vectors, RayLayout layout) {
  const RayLane lane = ray_lane(layout.group, rays);
  const RayRows rows = ray_rows(lane.ray, samples, samples, vectors);
  for (int base = 0; base < samples; base += layout.group) {
    const int sample = base + lane.index;
    const bool has_sample = lane.has_ray && sample < samples;
    const float weight = has_sample ? weights[lane.ray * samples + sample] : 0.0f;
    const float product =
        differentiate_rows<T, N>(grad + lane.ray * vectors, values, values, grad_values, grad_values, rows, weight,
                                 sample, min(layout.group, samples - base), 0.0f, layout, lane);
    if (has_sample && grad_weights != nullptr) grad_weights[lane.ray * samples + sample] = product;
  }
}

}  // namespace

void accumulate(cudaStream_t stream, int dtype, Pointer weights, Pointer values, Pointer sums, int64_t rays,
                int64_t samples, int64_t channels) {
  check_ray(samples, channels);
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    for_widest_vector<T>(channels, {input<T>(values), input<T>(sums)}, [&](auto width) {
      constexpr int N = decltype(width)::value;
      const RayLayout layout = ray_layout(samples, channels / N);
      launch(accumulate_kernel<T, N>, ray_blocks(rays, layout), kRayThreads, 0, stream, input<float>(weights),
             input<Vector<T, N>>(values), output<Vector<T, N>>(sums), rays, samples, channels / N, layout);
    });
  });
}

void accumulate_backward(cudaStream_t stream, int dtype, Pointer grad, Pointer weights, Pointer values,
                         Pointer grad_weights, Pointer grad_values, int64_t rays, int64_t samples, int64_t channels) {
  check_ray(samples, channels);
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    for_widest_vector<T>(channels, {input<T>(grad), input<T>(values), input<T>(grad_values)}, [&](auto width) {
      constexpr int N = decltype(width)::value;
      const RayLayout layout = ray_layout(samples, channels / N);
      launch(accumulate_backward_kernel<T, N>, ray_blocks(rays, layout), kRayThreads, 0, stream,
             input<Vector<T, N>>(grad), input<float>(weights), input<Vector<T, N>>(values), output<float>(grad_weights),
             output<Vector<T, N>>(grad_values), rays, samples, channels / N, layout);
    });
  });
}

}  // namespace cips3d

// What the kernels on rays share: groups of lanes that work on one ray, and the rows of channels of its samples.
#pragma once
#include "ops.h"

namespace cips3d {

constexpr int kRayThreads = 128;  // a block of the kernels below
constexpr int kRayBlocks = 5;     // of those on a multiprocessor, at least: 96 registers a thread

constexpr int kRowsAhead = 4;  // independent loads in flight a lane

// How a warp is cut: `group` neighbouring lanes have one ray, `row` neighbouring lanes of a group have one sample's
// channels. Powers of two, so that xor shuffles stay within.
struct RayLayout {
  int group, row;
};

inline int power_of_two_from(int64_t size, int largest) {
  int power = 1;
  while (power < size && power < largest) power *= 2;
  return power;
}

// Lanes for rays of `samples` rows of `vectors` vectors. A group that holds all samples needs one pass over them.
inline RayLayout ray_layout(int64_t samples, int64_t vectors) {
  const int row = power_of_two_from(vectors, 32);
  return {std::max(row, power_of_two_from(samples, 32)), row};
}

// Values of one ray are counted by ints.
inline void check_ray(int64_t samples, int64_t channels) {
  if (samples * std::max<int64_t>(channels, 1) > std::numeric_limits<int>::max())
    throw std::invalid_argument("more than 2^31 values on one ray");
}

inline unsigned ray_blocks(int64_t rays, RayLayout layout) { return blocks_for(rays, kRayThreads / layout.group); }

// Where a thread is: its ray and its lane within the ray's group. Lanes without a ray go on, for the shuffles.
struct RayLane {
  int64_t ray;
  int index;
  bool has_ray;
};

__device__ __forceinline__ RayLane ray_lane(int group, int64_t rays) {
  const int64_t ray = static_cast<int64_t>(blockIdx.x) * (kRayThreads / group) + threadIdx.x / group;
  return {ray, static_cast<int>(threadIdx.x % group), ray < rays};
}

// Sums over the lanes whose indices differ in the bits from `low` to below `high`; all of them get them.
template <int K>
__device__ __forceinline__ void sum_lanes(float (&x)[K], int low, int high) {
  for (int bit = low; bit < high; bit *= 2) {
    float other[K];
#pragma unroll
    for (int k = 0; k < K; k++) other[k] = __shfl_xor_sync(~0u, x[k], bit);
#pragma unroll
    for (int k = 0; k < K; k++) x[k] += other[k];
  }
}

__device__ __forceinline__ float sum_lanes(float x, int low, int high) {
  float sum[1] = {x};
  sum_lanes(sum, low, high);
  return sum[0];
}

// Sums over this lane and those before it in its group, of several numbers side by side.
template <int K>
__device__ __forceinline__ void sum_up_to(float (&x)[K], int index, int group) {
  for (int step = 1; step < group; step *= 2) {
    float before[K];
#pragma unroll
    for (int k = 0; k < K; k++) before[k] = __shfl_up_sync(~0u, x[k], step, group);
#pragma unroll
    for (int k = 0; k < K; k++)
      if (index >= step) x[k] += before[k];
  }
}

__device__ __forceinline__ float sum_up_to(float x, int index, int group) {
  float sum[1] = {x};
  sum_up_to(sum, index, group);
  return sum[0];
}

// Sum over this lane and those behind it in its group.
__device__ __forceinline__ float sum_from(float x, int index, int group) {
  for (int step = 1; step < group; step *= 2) {
    const float behind = __shfl_down_sync(~0u, x, step, group);
    if (index + step < group) x += behind;
  }
  return x;
}

// Products over this lane and those before it in its group, of several numbers side by side.
template <int K>
__device__ __forceinline__ void product_up_to(float (&x)[K], int index, int group) {
  for (int step = 1; step < group; step *= 2) {
    float before[K];
#pragma unroll
    for (int k = 0; k < K; k++) before[k] = __shfl_up_sync(~0u, x[k], step, group);
#pragma unroll
    for (int k = 0; k < K; k++)
      if (index >= step) x[k] *= before[k];
  }
}

__device__ __forceinline__ float product_up_to(float x, int index, int group) {
  float product[1] = {x};
  product_up_to(product, index, group);
  return product[0];
}

// The rows of C channels of one ray's samples: S coarse ones, then fine ones from a tensor of their own. Without fine
// ones both tensors are the same: a null one would make the compiler forget which memory they are in.
struct RayRows {
  int64_t coarse_first, fine_first;  // vectors in front of this ray's, in either tensor
  int coarse_rows;                   // S
  int vectors;                       // C / N

  template <class Row>
  __device__ __forceinline__ Row* at(Row* coarse, Row* fine, int row) const {
    return row < coarse_rows ? coarse + (coarse_first + row * vectors)
                             : fine + (fine_first + (row - coarse_rows) * vectors);
  }
};

__device__ __forceinline__ RayRows ray_rows(int64_t ray, int coarse_rows, int rows, int vectors) {
  return {ray * coarse_rows * vectors, ray * (rows - coarse_rows) * vectors, coarse_rows, vectors};
}

// sum += Σ_i w_i f_i over `count` samples whose weights and rows the first `count` lanes of the group hold, for the
// channels of one vector. The `row` lanes of each part of a group take every (group / row)th sample, so that the sums
// are complete after sum_lanes(sum, row, group).
template <class T, int N>
__device__ __forceinline__ void add_rows(float (&sum)[N], const Vector<T, N>* coarse, const Vector<T, N>* fine,
                                         const RayRows& rows, int vector, float weight, int row, int count,
                                         RayLayout layout, const RayLane& lane) {
  const int at_a_time = layout.group / layout.row, part = lane.index / layout.row;
  const bool has_channels = lane.has_ray && vector < rows.vectors;
  for (int first = 0; first < count; first += kRowsAhead * at_a_time) {
    Vector<T, N> values[kRowsAhead];
#pragma unroll
    for (int k = 0; k < kRowsAhead; k++) {
      const int sample = first + k * at_a_time + part;
      const int sample_row = __shfl_sync(~0u, row, sample, layout.group);
      values[k] = Vector<T, N>{};  // adds nothing, whatever weight it meets below
      if (has_channels && sample < count) values[k] = rows.at(coarse, fine, sample_row)[vector];
    }
#pragma unroll
    for (int k = 0; k < kRowsAhead; k++) {
      const float sample_weight = __shfl_sync(~0u, weight, first + k * at_a_time + part, layout.group);
#pragma unroll
      for (int e = 0; e < N; e++) sum[e] = fmaf(sample_weight, to_float(values[k].value[e]), sum[e]);
    }
  }
}

// The gradients of Σ_i w_i f_i for `count` samples that the first `count` lanes hold: returns g · (f_i - offset) to the
// lane of sample i, and writes w_i g to the rows of grad_coarse and grad_fine (nothing where they are null).
template <class T, int N>
__device__ __forceinline__ float differentiate_rows(const Vector<T, N>* grad,  // [vectors] g of this ray
                                                    const Vector<T, N>* coarse, const Vector<T, N>* fine,
                                                    Vector<T, N>* grad_coarse, Vector<T, N>* grad_fine,
                                                    const RayRows& rows, float weight, int row, int count, float offset,
                                                    RayLayout layout, const RayLane& lane) {
  constexpr int ahead = N > 4 ? kRowsAhead / 2 : kRowsAhead;  // what the registers allow
  const int at_a_time = layout.group / layout.row, part = lane.index / layout.row;
  float product = 0.0f;
  for (int first_vector = 0; first_vector < rows.vectors; first_vector += layout.row) {
    const int vector = first_vector + lane.index % layout.row;
    const bool has_channels = lane.has_ray && vector < rows.vectors;
    const Vector<T, N> g = has_channels ? grad[vector] : Vector<T, N>{};
    for (int first = 0; first < count; first += ahead * at_a_time) {
      Vector<T, N> values[ahead];
      int sample_rows[ahead];
      float dots[ahead] = {};
#pragma unroll
      for (int k = 0; k < ahead; k++) {
        const int sample = first + k * at_a_time + part;
        sample_rows[k] = __shfl_sync(~0u, row, sample, layout.group);
        if (has_channels && sample < count) values[k] = rows.at(coarse, fine, sample_rows[k])[vector];
      }
#pragma unroll
      for (int k = 0; k < ahead; k++) {
        const int sample = first + k * at_a_time + part;
        const float sample_weight = __shfl_sync(~0u, weight, sample, layout.group);
        if (!has_channels || sample >= count) continue;
        Vector<T, N> out;
#pragma unroll
        for (int e = 0; e < N; e++) {
          dots[k] = fmaf(to_float(g.value[e]), to_float(values[k].value[e]) - offset, dots[k]);
          out.value[e] = from_float<T>(sample_weight * to_float(g.value[e]));
        }
        if (grad_coarse != nullptr) rows.at(grad_coarse, grad_fine, sample_rows[k])[vector] = out;
      }
      sum_lanes(dots, 1, layout.row);
#pragma unroll
      for (int k = 0; k < ahead; k++) {
        // Part m of the group has sample start + m; the lane that holds that sample fetches its sum from there.
        const int m = lane.index - (first + k * at_a_time);
        const float dot = __shfl_sync(~0u, dots[k], m * layout.row, layout.group);
        if (m >= 0 && m < at_a_time) product += dot;
      }
    }
  }
  return product;
}

}  // namespace cips3d

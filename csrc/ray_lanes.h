// The work on one ray by the lanes of a warp: its samples' weights, fine depths drawn from them, their order, and the
// composited colours.
//
// A group of kLanes neighbouring lanes has a ray, a lane up to kSlots of its samples: sample slot * kLanes + lane.
#pragma once
#include "ray_samples.h"
#include "rays.h"
#include "tensor_core.h"

namespace cips3d {

constexpr int kWarpSamples = 96;             // most samples of a ray, coarse and fine: three a lane
constexpr int kWarpKeys = kWarpSamples + 8;  // two arrays of keys, each up to a multiple of four

// Weights of samples in order of depth.
template <int kSlots>
struct Compositing {
  float alpha[kSlots], transmittance[kSlots];  // in front of the sample
  __device__ __forceinline__ float weight(int slot) const { return alpha[slot] * transmittance[slot]; }
};

template <int kLanes, int kSlots>
__device__ __forceinline__ Compositing<kSlots> composite_lanes(const float (&density)[kSlots],
                                                               const float (&depth)[kSlots],
                                                               const float (&next)[kSlots], int count, bool softplus,
                                                               int lane) {
  Compositing<kSlots> c;
  float light = 1.0f;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = kLanes * slot + lane;
    c.alpha[slot] = c.transmittance[slot] = 0.0f;
    if (kLanes * slot >= count) continue;
    const float delta = i + 1 < count ? next[slot] - depth[slot] : kLastDelta;
    c.alpha[slot] = i < count ? 1.0f - expf(-delta * activated(density[slot], softplus)) : 0.0f;
    const float factor = i < count ? 1.0f - c.alpha[slot] + kTransmittanceFloor : 1.0f;
    const float up_to = product_up_to(factor, lane, kLanes);
    const float before = __shfl_up_sync(~0u, up_to, 1, kLanes);
    c.transmittance[slot] = light * (lane == 0 ? 1.0f : before);
    light *= __shfl_sync(~0u, up_to, kLanes - 1, kLanes);
  }
  return c;
}

// Fine depths of a ray: draws from the density that the coarse weights define, sorted. Lanes of a group without a ray
// take part for the others' sake and write nothing of it.
template <int kLanes, int kSlots>
__device__ __forceinline__ void resample(const float* depths,            // [coarse]
                                         float* fine_depths,             // [fine]
                                         const float (&weight)[kSlots],  // of the coarse samples
                                         const float* u,                 // [fine] draws
                                         float* cdf,                     // [coarse - 1] of the group
                                         unsigned* drawn,                // [fine + 3] of the group
                                         int coarse, int fine, int lane, bool has_ray) {
  const int bins = coarse - 1;  // edges of the distribution: midpoints of the coarse depths
  float inner[kSlots], total = 0.0f;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = kLanes * slot + lane;
    inner[slot] = 0.0f;
    if (kLanes * slot >= bins) continue;
    inner[slot] = i >= 1 && i < bins ? (weight[slot] + kWeightFloor) + kWeightFloor : 0.0f;
    total += inner[slot];
  }
  total = sum_lanes(total, 1, kLanes);
  float carried = 0.0f;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    if (kLanes * slot >= bins) break;
    const float up_to = carried + sum_up_to(inner[slot] / total, lane, kLanes);
    carried = __shfl_sync(~0u, up_to, kLanes - 1, kLanes);
    if (kLanes * slot + lane < bins) cdf[kLanes * slot + lane] = up_to;  // cdf[0] = 0
  }
  __syncwarp();
  for (int j = lane; j < fine; j += kLanes) {
    int upper = lower_bound(cdf, bins, u[j]);  // the position that torch.searchsorted gives
    const int lower = max(upper - 1, 0);
    upper = min(upper, bins - 1);
    const float step = cdf[upper] - cdf[lower];
    const float share = (u[j] - cdf[lower]) / (step < kCdfFloor ? 1.0f : step);
    const float a = 0.5f * (depths[lower] + depths[lower + 1]), b = 0.5f * (depths[upper] + depths[upper + 1]);
    drawn[j] = sortable(between(a, b, share));
  }
  pad_keys(drawn, fine, lane);
  __syncwarp();
  int rank[kSlots], sum = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int j = kLanes * slot + lane;
    rank[slot] = j < fine ? count_smaller(drawn, fine, drawn[j]) : 0;
    sum += rank[slot];
  }
  const bool distinct = all_distinct(sum, fine, 32 / kLanes);
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int j = kLanes * slot + lane;
    if (j >= fine || !has_ray) continue;
    fine_depths[distinct ? rank[slot] : count_before(drawn, fine, drawn[j], j)] = from_sortable(drawn[j]);
  }
  __syncwarp();
}

// order[i]: which sample is the ith from the front; of equal depths the coarse one. Draws in [0, 1) leave the coarse
// depths in order, as the fine ones are: a rank is a sample's place among its own and how many others come before it.
__device__ __forceinline__ void merge(const float* depths,  // [coarse + fine]
                                      int* order,           // [coarse + fine]
                                      unsigned* keys,       // [kWarpKeys] of the warp
                                      int coarse, int fine, int lane) {
  unsigned* fine_keys = keys + padded_keys(coarse);
  for (int i = lane; i < coarse; i += 32) keys[i] = sortable(depths[i]);
  for (int i = lane; i < fine; i += 32) fine_keys[i] = sortable(depths[coarse + i]);
  pad_keys(keys, coarse, lane);
  pad_keys(fine_keys, fine, lane);
  __syncwarp();
  bool ascending = true;
  for (int i = lane; i + 1 < coarse; i += 32) ascending &= keys[i] <= keys[i + 1];
  ascending = __all_sync(~0u, ascending);
  for (int i = lane; i < coarse + fine; i += 32) {
    const bool is_coarse = i < coarse;
    const unsigned key = is_coarse ? keys[i] : fine_keys[i - coarse];
    int place;
    if (ascending)
      place = (is_coarse ? i : i - coarse) +
              count_smaller(is_coarse ? fine_keys : keys, is_coarse ? fine : coarse, is_coarse ? key : key + 1);
    else
      place = is_coarse ? count_before(keys, coarse, key, i) + count_before(fine_keys, fine, key, 0)
                        : count_before(keys, coarse, key, coarse) + i - coarse;
    order[place] = i;
  }
  __syncwarp();
}

// out[c] = Σ weight colors[sample, c] of a ray, by a warp, whose lanes have weights of samples in any order.
template <int kSlots>
__device__ __forceinline__ void composite_colors(const float* colors,  // [samples, color_row]
                                                 const float* /* none */, const float (&weight)[kSlots],
                                                 const int (&sample)[kSlots],
                                                 float* weights,  // [kWarpSamples] of the warp
                                                 int samples, int channels, int color_row,
                                                 float* out,  // [channels]
                                                 int lane) {
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++)
    if (32 * slot + lane < samples) weights[sample[slot]] = weight[slot];
  __syncwarp();
  for (int channel = 2 * lane; channel < channels; channel += 64) {
    float x = 0.0f, y = 0.0f;
    for (int k = 0; k < samples; k++) {
      const float2 pair = *reinterpret_cast<const float2*>(colors + k * color_row + channel);
      x = fmaf(weights[k], pair.x, x);
      y = fmaf(weights[k], pair.y, y);
    }
    out[channel] = x;
    if (channel + 1 < channels) out[channel + 1] = y;
  }
}

// The same of float16 colours, as a product of matrices: weights are sums of two float16 numbers, which loses nothing
// beside float32.
template <int kSlots>
__device__ __forceinline__ void composite_colors(const half* colors,
                                                 const half* none,  // [8] zeros: what stands for samples not there
                                                 const float (&weight)[kSlots], const int (&sample)[kSlots],
                                                 float* weights, int samples, int channels, int color_row, float* out,
                                                 int lane) {
  half* parts = reinterpret_cast<half*>(weights);  // [2, kWarpSamples], 0 behind the last sample
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = 32 * slot + lane;
    if (32 * slot >= samples) continue;
    const int at = i < samples ? sample[slot] : i;
    const float value = i < samples ? weight[slot] : 0.0f;
    const half high = __float2half_rn(value);
    parts[at] = high;
    parts[kWarpSamples + at] = __float2half_rn(value - __half2float(high));
  }
  __syncwarp();
  constexpr int kStrips = 4;  // of 16 channels, at a time
  const int g = lane / 4, t = lane % 4 * 2;
  for (int first = 0; first < channels; first += 16 * kStrips) {
    const int last = (channels - 1) / 16 * 16 - first;  // strips behind the last one repeat it
    float sums[2 * kStrips][4] = {};
#pragma unroll 1
    for (int k = 0; k < samples; k += 16) {
      uint32_t high[4] = {}, low[4] = {};  // rows 0 to 7 of A are the same, the others 0
#pragma unroll
      for (int e = 0; e < 2; e++) {
        high[2 * e] = *reinterpret_cast<const uint32_t*>(parts + k + 8 * e + t);
        low[2 * e] = *reinterpret_cast<const uint32_t*>(parts + kWarpSamples + k + 8 * e + t);
      }
      // Lanes 0-15 address the rows of 16 samples at a strip's first 8 channels, lanes 16-31 at the others.
      const int row = k + lane % 16;
      const bool there = row < samples;
      const half* from = there ? colors + row * color_row + first + lane / 16 * 8 : none;
#pragma unroll
      for (int strip = 0; strip < kStrips; strip++) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, from + (there ? min(16 * strip, last) : 0));
#pragma unroll
        for (int n = 0; n < 2; n++) {
          const uint32_t pair[2] = {b[2 * n], b[2 * n + 1]};
          mma_m16n8k16_f16(sums[2 * strip + n], low, pair, sums[2 * strip + n]);
          mma_m16n8k16_f16(sums[2 * strip + n], high, pair, sums[2 * strip + n]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 2 * kStrips; n++) {  // every lane has a pair of each eight channels, and stores one pair
      const int channel = first + 8 * n + t;
      if (g != n || channel >= channels) continue;
      if (channels % 2 == 0) {
        *reinterpret_cast<float2*>(out + channel) = make_float2(sums[n][0], sums[n][1]);
      } else {
        out[channel] = sums[n][0];
        if (channel + 1 < channels) out[channel + 1] = sums[n][1];
      }
    }
  }
}

}  // namespace cips3d

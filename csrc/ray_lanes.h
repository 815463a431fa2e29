// The work on rays by the lanes of a warp: their samples' weights, fine depths drawn from them, their order, and the
// composited colours.
//
// A group of kLanes neighbouring lanes has kRays rays, a lane up to kSlots samples of each: sample slot * kLanes +
// lane. Each step of the work waits for the one before: what several rays need is computed side by side, without
// branches between.
#pragma once
#include "ray_samples.h"
#include "rays.h"
#include "tensor_core.h"

namespace cips3d {

constexpr int kWarpSamples = 96;  // most samples of a ray, coarse and fine: three a lane
constexpr int kFewSamples = 32;   // one a lane; of so many a warp has three rays at a time
constexpr int kRaysOfFew = 3;
constexpr int kWarpKeys = kRaysOfFew * (kFewSamples + 4);  // two arrays of a ray, each up to a multiple of four
static_assert(kWarpKeys >= kWarpSamples + 8, "and those of a ray of many samples");

// How much of a warp's array one of its rays has.
__host__ __device__ constexpr int part_of_warp(int whole, int rays) { return whole / rays / 4 * 4; }

// Weights of samples in order of depth.
template <int kRays, int kSlots>
struct Compositing {
  float alpha[kRays][kSlots], transmittance[kRays][kSlots];  // in front of the sample
  __device__ __forceinline__ float weight(int ray, int slot) const {
    return alpha[ray][slot] * transmittance[ray][slot];
  }
};

template <int kLanes, int kRays, int kSlots>
__device__ __forceinline__ Compositing<kRays, kSlots> composite_lanes(const float (&density)[kRays][kSlots],
                                                                      const float (&depth)[kRays][kSlots],
                                                                      const float (&next)[kRays][kSlots], int count,
                                                                      bool softplus, int lane) {
  Compositing<kRays, kSlots> c;
  float light[kRays];
#pragma unroll
  for (int k = 0; k < kRays; k++) light[k] = 1.0f;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = kLanes * slot + lane;
#pragma unroll
    for (int k = 0; k < kRays; k++) c.alpha[k][slot] = c.transmittance[k][slot] = 0.0f;
    if (kLanes * slot >= count) continue;
    float sigma[kRays], up_to[kRays], before[kRays], all[kRays];
#pragma unroll
    for (int k = 0; k < kRays; k++) sigma[k] = activated(density[k][slot], false);
    if (softplus) {
#pragma unroll
      for (int k = 0; k < kRays; k++) sigma[k] = activated(density[k][slot], true);
    }
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      const float delta = i + 1 < count ? next[k][slot] - depth[k][slot] : kLastDelta;
      const float alpha = 1.0f - expf(-delta * sigma[k]);
      c.alpha[k][slot] = i < count ? alpha : 0.0f;
      up_to[k] = i < count ? 1.0f - alpha + kTransmittanceFloor : 1.0f;
    }
    product_up_to(up_to, lane, kLanes);
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      before[k] = __shfl_up_sync(~0u, up_to[k], 1, kLanes);
      all[k] = __shfl_sync(~0u, up_to[k], kLanes - 1, kLanes);
    }
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      c.transmittance[k][slot] = light[k] * (lane == 0 ? 1.0f : before[k]);
      light[k] *= all[k];
    }
  }
  return c;
}

// Fine depths of rays: draws from the density that the coarse weights define, sorted. Rays that are not there are gone
// through for the others' sake, and nothing is written of them.
template <int kLanes, int kRays, int kSlots>
__device__ __forceinline__ void resample(float* const (&depths)[kRays],         // [coarse], and [fine] behind them
                                         const float (&weight)[kRays][kSlots],  // of the coarse samples
                                         const float (&draw)[kSlots][kRays],    // of the fine ones
                                         float* const (&cdf)[kRays],            // [coarse - 1]
                                         unsigned* const (&drawn)[kRays],       // [fine + 3]
                                         int coarse, int fine, int lane, const bool (&there)[kRays]) {
  const int bins = coarse - 1;  // edges of the distribution: midpoints of the coarse depths
  float inner[kRays][kSlots], total[kRays], carried[kRays];
#pragma unroll
  for (int k = 0; k < kRays; k++) {
    total[k] = carried[k] = 0.0f;
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      const int i = kLanes * slot + lane;
      inner[k][slot] = i >= 1 && i < bins ? (weight[k][slot] + kWeightFloor) + kWeightFloor : 0.0f;
      total[k] += inner[k][slot];
    }
  }
  sum_lanes(total, 1, kLanes);
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    if (kLanes * slot >= bins) break;
    float up_to[kRays];
#pragma unroll
    for (int k = 0; k < kRays; k++) up_to[k] = inner[k][slot] / total[k];
    sum_up_to(up_to, lane, kLanes);
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      up_to[k] += carried[k];
      carried[k] = __shfl_sync(~0u, up_to[k], kLanes - 1, kLanes);
      if (kLanes * slot + lane < bins) cdf[k][kLanes * slot + lane] = up_to[k];  // cdf[0] = 0
    }
  }
  __syncwarp();
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int j = kLanes * slot + lane;
    if (kLanes * slot >= fine) continue;
    int upper[kRays];
    lower_bound(upper, cdf, bins, draw[slot]);  // as torch.searchsorted
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      const int low = max(upper[k] - 1, 0), up = min(upper[k], bins - 1);
      const float step = cdf[k][up] - cdf[k][low];
      const float share = (draw[slot][k] - cdf[k][low]) / (step < kCdfFloor ? 1.0f : step);
      const float a = 0.5f * (depths[k][low] + depths[k][low + 1]), b = 0.5f * (depths[k][up] + depths[k][up + 1]);
      if (j < fine) drawn[k][j] = sortable(between(a, b, share));
    }
  }
#pragma unroll
  for (int k = 0; k < kRays; k++) pad_keys(drawn[k], fine, lane);
  __syncwarp();
  unsigned key[kSlots][kRays];
  int rank[kSlots][kRays], sum = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int j = kLanes * slot + lane;
    if (kLanes * slot >= fine) continue;
#pragma unroll
    for (int k = 0; k < kRays; k++) key[slot][k] = drawn[k][min(j, fine - 1)];
    count_smaller(rank[slot], drawn, fine, key[slot]);
#pragma unroll
    for (int k = 0; k < kRays; k++) sum += j < fine ? rank[slot][k] : 0;
  }
  const bool distinct = all_distinct(sum, fine, 32 / kLanes * kRays);
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++)
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      const int j = kLanes * slot + lane;
      if (kLanes * slot >= fine) continue;
      if (!distinct) rank[slot][k] = count_before(drawn[k], fine, key[slot][k], j);
      if (j < fine && there[k]) depths[k][coarse + rank[slot][k]] = from_sortable(key[slot][k]);
    }
  __syncwarp();
}

// order[i]: which sample is the ith from the front; of equal depths the coarse one. Draws in [0, 1) leave the coarse
// depths in order, as the fine ones are: a rank is a sample's place among its own and how many others come before it.
template <int kRays, int kSlots>
__device__ __forceinline__ void merge(const float* const (&depths)[kRays],  // [coarse + fine]
                                      int* const (&order)[kRays],           // [coarse + fine]
                                      unsigned* const (&keys)[kRays],       // [coarse + fine + 6]
                                      int coarse, int fine, int lane, const bool (&there)[kRays]) {
  const int fine_keys = padded_keys(coarse);
#pragma unroll
  for (int k = 0; k < kRays; k++) {
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      const int i = 32 * slot + lane;
      if (i < coarse + fine) keys[k][i < coarse ? i : fine_keys + i - coarse] = sortable(depths[k][i]);
    }
    pad_keys(keys[k], coarse, lane);
    pad_keys(keys[k] + fine_keys, fine, lane);
  }
  __syncwarp();
  bool ascending = true;
#pragma unroll
  for (int k = 0; k < kRays; k++)
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      const int i = min(32 * slot + lane, max(coarse - 2, 0));
      ascending &= coarse < 2 || keys[k][i] <= keys[k][i + 1];
    }
  ascending = __all_sync(~0u, ascending);
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const int i = 32 * slot + lane;
    if (32 * slot >= coarse + fine) continue;
    const bool is_coarse = i < coarse;
    const int own = is_coarse ? i : min(i - coarse, fine - 1), others = is_coarse ? fine_keys : 0;
    const int count = padded_keys(is_coarse ? fine : coarse);
    unsigned key[kRays];
    int place[kRays];
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      key[k] = keys[k][is_coarse ? own : fine_keys + own];
      place[k] = own;
    }
#pragma unroll 1
    for (int m = 0; m < (fine > 0 ? max(coarse, fine) : 0); m += 4) {  // as often in every lane
      const int counts = m < count ? ~0 : 0;                           // without a branch
      uint4 four[kRays];
#pragma unroll
      for (int k = 0; k < kRays; k++) four[k] = *reinterpret_cast<const uint4*>(keys[k] + others + min(m, count - 4));
#pragma unroll
      for (int k = 0; k < kRays; k++) place[k] += counts & count_smaller(four[k], is_coarse ? key[k] : key[k] + 1);
    }
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      if (!ascending)
        place[k] = is_coarse
                       ? count_before(keys[k], coarse, key[k], i) + count_before(keys[k] + others, fine, key[k], 0)
                       : count_before(keys[k], coarse, key[k], coarse) + own;
      if (i < coarse + fine && there[k]) order[k][place[k]] = i;
    }
  }
  __syncwarp();
}

// out[c] = Σ weight colors[sample, c] of rays, by a warp, whose lanes have weights of samples in any order.
template <int kRays, int kSlots>
__device__ __forceinline__ void composite_colors(const float* const (&colors)[kRays],  // [samples, color_row]
                                                 const float* /* none */, const float (&weight)[kRays][kSlots],
                                                 const int (&sample)[kRays][kSlots],
                                                 float* const (&weights)[kRays],  // [32 * kSlots]
                                                 int samples, int channels, int color_row,
                                                 float* const (&out)[kRays],  // [channels]
                                                 int lane, const bool (&there)[kRays]) {
#pragma unroll
  for (int k = 0; k < kRays; k++)
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++)
      if (32 * slot + lane < samples) weights[k][sample[k][slot]] = weight[k][slot];
  __syncwarp();
  for (int channel = 2 * lane; channel < channels; channel += 64) {
    float2 sum[kRays] = {};
    for (int i = 0; i < samples; i++)
#pragma unroll
      for (int k = 0; k < kRays; k++) {
        const float2 pair = *reinterpret_cast<const float2*>(colors[k] + i * color_row + channel);
        sum[k].x = fmaf(weights[k][i], pair.x, sum[k].x);
        sum[k].y = fmaf(weights[k][i], pair.y, sum[k].y);
      }
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      if (there[k]) out[k][channel] = sum[k].x;
      if (there[k] && channel + 1 < channels) out[k][channel + 1] = sum[k].y;
    }
  }
}

// The same of float16 colours, as a product of matrices: weights are sums of two float16 numbers, which loses nothing
// beside float32.
template <int kRays, int kSlots>
__device__ __forceinline__ void composite_colors(const half* const (&colors)[kRays],
                                                 const half* none,  // [8] zeros: what stands for samples not there
                                                 const float (&weight)[kRays][kSlots],
                                                 const int (&sample)[kRays][kSlots], float* const (&weights)[kRays],
                                                 int samples, int channels, int color_row, float* const (&out)[kRays],
                                                 int lane, const bool (&there)[kRays]) {
  constexpr int kPlaces = 32 * kSlots;
  half* parts[kRays];  // [2, kPlaces], 0 behind the last sample
#pragma unroll
  for (int k = 0; k < kRays; k++) {
    parts[k] = reinterpret_cast<half*>(weights[k]);
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      const int i = 32 * slot + lane;
      if (32 * slot >= samples) continue;
      const int at = i < samples ? sample[k][slot] : i;
      const float value = i < samples ? weight[k][slot] : 0.0f;
      const half high = __float2half_rn(value);
      parts[k][at] = high;
      parts[k][kPlaces + at] = __float2half_rn(value - __half2float(high));
    }
  }
  __syncwarp();
  constexpr int kStrips = 4;  // of 16 channels, at a time
  const int g = lane / 4, t = lane % 4;
  for (int first = 0; first < channels; first += 16 * kStrips) {
    const int last = (channels - 1) / 16 * 16 - first;  // strips behind the last one repeat it
    float sums[kRays][kStrips][4] = {};
#pragma unroll 1
    for (int i = 0; i < samples; i += 16)
#pragma unroll
      for (int k = 0; k < kRays; k++) {
        // B: 16 samples, and eight columns that are the high parts of their weights and the low ones in turn.
        const half* column = parts[k] + g % 2 * kPlaces + i + 2 * t;
        const uint32_t b[2] = {*reinterpret_cast<const uint32_t*>(column),
                               *reinterpret_cast<const uint32_t*>(column + 8)};
        // A: 16 channels of the samples. Lanes 0-15 address the rows of the first 8 at a strip's first 8 channels and
        // at the others, lanes 16-31 those of the other 8.
        const int row = i + lane / 16 * 8 + lane % 8;
        const half* from = row < samples ? colors[k] + row * color_row + first + lane / 8 % 2 * 8 : none;
#pragma unroll
        for (int strip = 0; strip < kStrips; strip++) {
          uint32_t a[4];
          ldmatrix_x4_trans(a, from + (row < samples ? min(16 * strip, last) : 0));
          mma_m16n8k16_f16(sums[k][strip], a, b, sums[k][strip]);
        }
      }
    // Every lane has both sums of channels g and g + 8 of every strip, and stores those of strip t.
    const int channel = first + 16 * t + g;
#pragma unroll
    for (int k = 0; k < kRays; k++) {
      float2 mine = make_float2(0.0f, 0.0f);
#pragma unroll
      for (int strip = 0; strip < kStrips; strip++)
        if (t == strip)
          mine = make_float2(sums[k][strip][0] + sums[k][strip][1], sums[k][strip][2] + sums[k][strip][3]);
      if (there[k] && channel < channels) out[k][channel] = mine.x;
      if (there[k] && channel + 8 < channels) out[k][channel + 8] = mine.y;
    }
  }
}

}  // namespace cips3d

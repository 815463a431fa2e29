// The depths that stratified sampling draws.
#pragma once
#include "runtime.h"

namespace cips3d {

// Centres from t_near to t_far, around which each draw u in [0, 1) moves a depth by (u - middle) * spacing.
struct StratifiedRange {
  float t_near, t_far;
  float step;  // between centres
  float spacing, middle;
  int samples;

  // torch.linspace(t_near, t_far, samples)[i], which counts from the nearer end.
  __host__ __device__ float centre(int i) const {
    return i < samples / 2 ? t_near + step * i : t_far - step * (samples - 1 - i);
  }
  __device__ __forceinline__ float depth(int i, float u) const { return centre(i) + (u - middle) * spacing; }
};

inline StratifiedRange stratified_range(double t_near, double t_far, int64_t samples) {
  const float begin = static_cast<float>(t_near), end = static_cast<float>(t_far);
  if (samples == 1) return {begin, begin, 0.0f, static_cast<float>(t_far - t_near), 0.0f, 1};  // the whole range
  StratifiedRange r{begin, end, (end - begin) / (samples - 1), 0.0f, 0.5f, static_cast<int>(samples)};
  r.spacing = r.centre(1) - r.centre(0);  // rounded like the difference of two elements of torch.linspace
  return r;
}

}  // namespace cips3d

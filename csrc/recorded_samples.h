// Samples at given depths of rays, and what the gradients of a streamed field need of them (streamed_field.h).
#pragma once
#include "streamed_field.h"

namespace cips3d {

// Rays of B images with S samples each at given depths: N = R S of an image, B N < 2^31.
struct SampledRays {
  const float* origins;     // [B, R, 3]
  const float* directions;  // [B, R, 3]
  const float* depths;      // [B, R, S]
  int samples;              // S
  int all;                  // B N
};

// What is kept of all samples, as float16, or in the accurate mode as float32. Rows are whole strips of channels, of
// the trunk or of the colour layer.
template <class T>
struct SampleRecords {
  T* inputs;        // [products, B, N, width] of every product
  T* slopes;        // [products, B, N, width] cosines of the trunk's phases, but of the first layer's
  T* color_slopes;  // [B, N, color] those of the colour layer
  T* activations;   // [B, N, color] the colour layer's
  float* density;   // [B, N] raw
  float* colors;    // [B, N, 3] with a head; without, colours are the activations
};

// Samples [first, first + count) of all, which belong to one image.
template <class T>
struct RecordedPass {
  static constexpr bool kRecords = true, kAccurate = std::is_same<T, float>::value;
  const SampledRays& from;
  const SampleRecords<T>& to;
  const StreamedLayers& layers;
  int first, count;

  __device__ __forceinline__ int size() const { return count; }
  // Rows past the end repeat the last one, and nothing is stored of them.
  __device__ __forceinline__ PassSample operator[](int row) const {
    const int at = min(row, count - 1), ray = (first + at) / from.samples;
    const float *o = from.origins + int64_t{3} * ray, *d = from.directions + int64_t{3} * ray;
    const float t = from.depths[first + at];
    return {at, ray, make_float3(fmaf(t, d[0], o[0]), fmaf(t, d[1], o[1]), fmaf(t, d[2], o[2]))};
  }
  __device__ __forceinline__ const float* direction(const PassSample& sample) const {
    return from.directions + int64_t{3} * sample.ray;
  }
  __device__ __forceinline__ void keep_density(int at, float density) const { to.density[first + at] = density; }
  __device__ __forceinline__ void keep_color(int at, int, float red, float green, float blue) const {
    float* color = to.colors + int64_t{kHeadValues} * (first + at);
    color[0] = red, color[1] = green, color[2] = blue;
  }

  // Rows of a product's operands, from `base` on.
  __device__ __forceinline__ T* inputs_of(int base, int product) const {
    return to.inputs + (int64_t{product} * from.all + first + base) * layers.width;
  }
  // Writes those of a tile, by all threads.
  template <class Product>
  __device__ __forceinline__ void keep_inputs(int base, int product, const half* activations) const {
    constexpr int kRows = Product::kRows, kRow = Product::kRow;
    T* inputs = inputs_of(base, product);
    if constexpr (kAccurate)
      store_rows<kRows>(activations, kRows * kRow, kRow, inputs, layers.width, count - base);
    else
      store_rows<kRows>(activations, kRow, inputs, layers.width, count - base);
  }
  // The cosines of two of a sample's phases; row: behind `base`; product: kColorLayer or one of the trunk's. kWhole:
  // there are as many rows as a tile has; otherwise each cosine waits for itself in the branch that stores it.
  template <bool kWhole>
  __device__ __forceinline__ void keep_slopes(int base, int row, int product, int channel, float phase_x,
                                              float phase_y) const {
    const bool color = product == kColorLayer;
    T* slopes = color ? to.color_slopes : to.slopes + int64_t{product + 1} * from.all * layers.width;
    keep<kWhole>(slopes, color ? layers.color : layers.width, base, row, channel, cosine<kAccurate>(phase_x),
                 cosine<kAccurate>(phase_y));
  }
  template <bool kWhole>
  __device__ __forceinline__ void keep_activations(int base, int row, int channel, float x, float y) const {
    keep<kWhole>(to.activations, layers.color, base, row, channel, x, y);
  }

 private:
  // The address as what all threads have in common and 32 bits of a thread's own: registers are few.
  template <bool kWhole>
  __device__ __forceinline__ void keep(T* rows, int width, int base, int row, int channel, float x, float y) const {
    if constexpr (kWhole) {
      char* tile = reinterpret_cast<char*>(rows + int64_t{width} * (first + base));
      keep_pair(tile + unsigned(sizeof(T)) * unsigned(width * anew(row) + channel), x, y);
    } else {
      T* tile = rows + int64_t{width} * (first + base);
      if (anew(base) + row < count) keep_pair(tile + unsigned(width * row + channel), x, y);
    }
  }
  __device__ __forceinline__ static void keep_pair(void* to, float x, float y) {
    if constexpr (kAccurate)
      *static_cast<float2*>(to) = make_float2(x, y);
    else
      *static_cast<uint32_t*>(to) = Operand<half>::pack(x, y);
  }
};

}  // namespace cips3d

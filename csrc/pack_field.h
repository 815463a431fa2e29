// Layers of a field as streamed_field.h wants them.
#pragma once
#include "streamed_field.h"

namespace cips3d {

// The layers as the caller gives them, contiguous float32; L sine layers of width W, a colour layer of C. Without a
// head they are folded: I = B images have matrices of their own, with gain and shift in them already. Else I = 1.
struct FieldTensors {
  const float* first_weight;    // [I, W, 3]
  const float* first_bias;      // [I, W]
  const float* hidden_weight;   // [I, L - 1, W, W]
  const float* hidden_bias;     // [I, L - 1, W]
  const float* trunk_gain;      // [B, L, W], null where folded, as are the other gains and shifts
  const float* trunk_shift;     // [B, L, W]
  const float* density_weight;  // [W]
  const float* color_weight;    // [I, C, D + W] the direction first; D = 3 with a head, else 0
  const float* color_bias;      // [I, C]
  const float* color_gain;      // [B, C]
  const float* color_shift;     // [B, C]
  const float* head_weight;     // [3, C], or null: no head
  int depth, width, color;      // L, W, C

  __host__ __device__ bool has_head() const { return head_weight != nullptr; }
};

inline FieldTensors field_tensors(Pointer first_weight, Pointer first_bias, Pointer hidden_weight, Pointer hidden_bias,
                                  Pointer trunk_gain, Pointer trunk_shift, Pointer density_weight, Pointer color_weight,
                                  Pointer color_bias, Pointer color_gain, Pointer color_shift, Pointer head_weight,
                                  int depth, int width, int color) {
  return {input<float>(first_weight),
          input<float>(first_bias),
          input<float>(hidden_weight),
          input<float>(hidden_bias),
          input<float>(trunk_gain),
          input<float>(trunk_shift),
          input<float>(density_weight),
          input<float>(color_weight),
          input<float>(color_bias),
          input<float>(color_gain),
          input<float>(color_shift),
          input<float>(head_weight),
          depth,
          width,
          color};
}

// Bytes of the memory that pack_field() writes.
int64_t packed_field_bytes(int64_t images, int depth, int width, int color, bool head, bool accurate);

// How a field wants its slabs.
struct SlabFormat {
  int slab, parts;     // input channels, and parts of float16
  bool core_matrices;  // within a part the inputs of a column follow each other, all of them, or with this eight by
                       // eight

  template <class Field>
  static SlabFormat of() {
    return {Field::kSlab, Field::kParts, Field::kCoreMatrices};
  }
};

// Packs B images' layers into `workspace`. What else StreamedLayers has is left to the caller.
StreamedLayers pack_field(cudaStream_t stream, const FieldTensors& tensors, int64_t images, SlabFormat format,
                          Pointer workspace);

}  // namespace cips3d

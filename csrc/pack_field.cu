// Packs a field's layers: weights as slabs of 16-bit operands, what belongs to an image as the modulation of a phase.
#include "pack_field.h"
#include "packed_matrix.h"

namespace cips3d {
namespace {

constexpr int kWidestSlab = 32;

// Columns of the colour layer's slabs: with core matrices one strip or all.
int color_columns_of(int color, bool core_matrices) {
  return core_matrices && color > kStrip ? kFieldWidth : whole_strips(color);
}

// What packing writes, one array after the other. Floats come first: halves need no alignment that they could break.
struct Workspace {
  float4* first;       // [B, kFieldWidth]
  float4* heads;       // [kFieldWidth]
  float2* modulation;  // [B, L, kFieldWidth]
  float* unscale;      // [I, L, kFieldWidth] what undoes the scale of a row of weights
  half* slabs;         // [I, image_halves]
  int64_t image_halves, bytes;

  Workspace(Pointer memory, int64_t images, int depth, int width, int color, bool head, int parts, bool core_matrices) {
    const int64_t matrices = head ? 1 : images;
    // With a head the colour layer has a slab of the direction besides.
    const int64_t inputs = whole_strips(width), color_inputs = inputs + (head ? kWidestSlab : 0);
    image_halves = ((depth - 1) * inputs * inputs + color_inputs * color_columns_of(color, core_matrices)) * parts;
    first = output<float4>(memory);
    heads = first + images * kFieldWidth;
    modulation = reinterpret_cast<float2*>(heads + kFieldWidth);
    unscale = reinterpret_cast<float*>(modulation + images * depth * kFieldWidth);
    slabs = reinterpret_cast<half*>(unscale + matrices * depth * kFieldWidth);
    bytes = reinterpret_cast<Pointer>(slabs + matrices * image_halves) - memory;
  }
};

// A warp packs one row of a matrix: block (image, row, product). Rows are scaled by a power of two, so that what
// float16 cannot hold of small weights is small against the row's largest.
__global__ void __launch_bounds__(32)
    pack_field_weights_kernel(const FieldTensors from, const SlabFormat format, int color_columns, int64_t image_halves,
                              half* __restrict__ slabs,    // [I] of Slabs
                              float* __restrict__ unscale  // [I, L, kFieldWidth]
    ) {
  const int row = blockIdx.y, product = blockIdx.z, directions = from.has_head() ? 3 : 0;
  const int slab_inputs = format.slab;
  const int64_t image = blockIdx.x;
  const bool color = product + 1 == from.depth;
  const int padded = whole_strips(from.width), columns = color ? color_columns : padded;
  if (row >= columns) return;
  const int rows = color ? from.color : from.width;
  const float* weight =
      color ? from.color_weight + (image * from.color + row) * (directions + from.width)
            : from.hidden_weight + ((image * (from.depth - 1) + product) * from.width + row) * from.width;
  // Column k of the operand: the trunk's activations, and from `padded` on the direction.
  const auto read = [&](int k) {
    if (row >= rows) return 0.0f;
    if (k < padded) return k < from.width ? weight[color ? directions + k : k] : 0.0f;
    return k < padded + directions ? weight[k - padded] : 0.0f;
  };
  const int depth = color && directions > 0 ? padded + slab_inputs : padded;
  const float scale = pack_row<half>(depth, depth_steps(depth), read, [=](int i, uint4 unit) {
    const int k = 4 * i;
    const int64_t before =
        int64_t{product} * padded * padded + k / slab_inputs * slab_inputs * columns;  // halves a part
    half* to = slabs + image * image_halves + before * format.parts;
    to +=
        format.core_matrices ? (k % slab_inputs / 8 * columns + row) * 8 + k % 8 : row * slab_inputs + k % slab_inputs;
    *reinterpret_cast<uint2*>(to) = {unit.x, unit.y};
    if (format.parts > 1) *reinterpret_cast<uint2*>(to + columns * slab_inputs) = {unit.z, unit.w};
  });
  if (threadIdx.x == 0 && row < kFieldWidth)
    unscale[(image * from.depth + product) * kFieldWidth + row] = inverse_scale(scale);
}

// What belongs to an image: block (image, product); the last block of y has the first layer, and image 0's the heads.
__global__ void __launch_bounds__(kFieldWidth)
    pack_field_modulation_kernel(const FieldTensors from, const float* __restrict__ unscale, float4* __restrict__ first,
                                 float4* __restrict__ heads, float2* __restrict__ modulation) {
  const int channel = threadIdx.x, product = blockIdx.y, depth = from.depth;
  const int64_t image = blockIdx.x, matrix = from.has_head() ? 0 : image;
  if (product == depth) {
    const bool in_trunk = channel < from.width, in_head = from.has_head() && channel < from.color;
    float4 phase = {};
    if (in_trunk) {
      const int64_t at = image * depth * from.width + channel, of_matrix = matrix * from.width + channel;
      const float gain = from.has_head() ? from.trunk_gain[at] : 1.0f, bias = from.first_bias[of_matrix];
      const float* w = from.first_weight + 3 * of_matrix;
      phase = make_float4(gain * w[0], gain * w[1], gain * w[2],
                          from.has_head() ? fmaf(gain, bias, from.trunk_shift[at]) : bias);
    }
    first[image * kFieldWidth + channel] = phase;
    if (image > 0) return;
    heads[channel] =
        make_float4(in_trunk ? from.density_weight[channel] : 0.0f, in_head ? from.head_weight[channel] : 0.0f,
                    in_head ? from.head_weight[from.color + channel] : 0.0f,
                    in_head ? from.head_weight[2 * from.color + channel] : 0.0f);
    return;
  }
  const bool color = product + 1 == depth;
  float2 phase = {};
  if (channel < (color ? from.color : from.width)) {
    const float* biases = color ? from.color_bias + matrix * from.color
                                : from.hidden_bias + (matrix * (depth - 1) + product) * from.width;
    phase = make_float2(unscale[(matrix * depth + product) * kFieldWidth + channel], biases[channel]);
    if (from.has_head()) {
      const int64_t at = color ? image * from.color + channel : (image * depth + product + 1) * from.width + channel;
      const float gain = (color ? from.color_gain : from.trunk_gain)[at];
      const float shift = (color ? from.color_shift : from.trunk_shift)[at];
      phase = make_float2(gain * phase.x, fmaf(gain, phase.y, shift));
    }
  }
  modulation[(image * depth + product) * kFieldWidth + channel] = phase;
}

}  // namespace

int64_t packed_field_bytes(int64_t images, int depth, int width, int color, bool head, bool accurate) {
  return Workspace(0, images, depth, width, color, head, accurate ? 2 : 1, !accurate).bytes;  // with most columns
}

StreamedLayers pack_field(cudaStream_t stream, const FieldTensors& tensors, int64_t images, SlabFormat format,
                          Pointer workspace) {
  const bool head = tensors.has_head();
  const int depth = tensors.depth, width = whole_strips(tensors.width);
  const Workspace packed(workspace, images, depth, tensors.width, tensors.color, head, format.parts,
                         format.core_matrices);
  const int color_columns = color_columns_of(tensors.color, format.core_matrices);
  const unsigned matrices = head ? 1 : blocks_for(images, 1);
  launch(pack_field_weights_kernel, dim3(matrices, std::max(width, color_columns), depth), dim3(32), 0, stream, tensors,
         format, color_columns, packed.image_halves, packed.slabs, packed.unscale);
  launch(pack_field_modulation_kernel, dim3(blocks_for(images, 1), depth + 1), dim3(kFieldWidth), 0, stream, tensors,
         packed.unscale, packed.first, packed.heads, packed.modulation);
  StreamedLayers layers = layer_sizes(depth, tensors.width, tensors.color);
  const int tail = width / format.slab + head;
  layers.slabs = {packed.slabs, (depth - 1) * (width / format.slab) + tail, width, 0, tail, color_columns};
  layers.image_halves = head ? 0 : packed.image_halves;
  layers.first = packed.first, layers.modulation = packed.modulation, layers.heads = packed.heads;
  layers.channels = tensors.color;
  return layers;
}

}  // namespace cips3d

// Streamed fields at given samples with what their gradients need, and these gradients: what the backward of
// render_rays is made of where weights do not fit into shared memory. In between, composite_backward; behind it,
// film_siren_weight_gradient.
//
// A layer of 256 with operands of 16 bits, in bytes a channel and sample: its input is written (2), and the cosine of
// its phase (2), which is read and has the phase's gradient in its place (4); sums over samples read gradient and input
// (4). Layer by layer it would be 18, with the phase computed once more, a product in four. In the accurate mode all of
// it is float32, twice as much.
#include "pack_field.h"
#include "streamed_field_warpgroups.h"
#include "streamed_gradients_warpgroups.h"

namespace cips3d {
namespace {

// How blocks share out tiles of samples, none of which are of two images: consecutive ones each.
struct TilesOfImages {
  int images, samples;  // of an image
  int rows;             // of a tile
  int tiles_an_image, tiles_a_block;

  TilesOfImages(int64_t of_images, int64_t of_image, int of_tile)
      : images(static_cast<int>(of_images)),
        samples(static_cast<int>(of_image)),
        rows(of_tile),
        tiles_an_image(static_cast<int>(ceil_div<int64_t>(of_image, of_tile))),
        tiles_a_block(static_cast<int>(ceil_div<int64_t>(tiles(), device_limits().multiprocessors))) {}
  __host__ __device__ int64_t tiles() const { return int64_t{images} * tiles_an_image; }
  unsigned blocks() const { return blocks_for(tiles(), tiles_a_block); }

  // Calls f(image, first sample of all, count) for all that the block has of an image.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const int all = images * tiles_an_image, last = min(all, static_cast<int>(blockIdx.x + 1) * tiles_a_block);
    for (int tile = blockIdx.x * tiles_a_block; tile < last;) {
      const int image = tile / tiles_an_image, end = min(last, (image + 1) * tiles_an_image);
      const int first = (tile - image * tiles_an_image) * rows;
      const int behind = min(samples, (end - image * tiles_an_image) * rows);
      __syncthreads();  // nobody needs the image before
      f(image, image * samples + first, behind - first);
      tile = end;
    }
  }
};

template <class Field>
__global__ void __launch_bounds__(kStreamThreads, 1)
    record_samples_kernel(const __grid_constant__ SampledRays rays,
                          const __grid_constant__ SampleRecords<typename Field::Record> records,
                          const __grid_constant__ StreamedLayers layers, const __grid_constant__ TilesOfImages tiles) {
  if constexpr (!Field::kFits) {
    __trap();
  } else {
    SharedArrays shared;
    Field field(shared, layers);
    tiles.each([&](int image, int first, int count) {
      field.begin(image);
      __syncthreads();
      field.evaluate(RecordedPass<typename Field::Record>{rays, records, layers, first, count});
    });
  }
}

template <class Gradients>
__global__ void __launch_bounds__(kStreamThreads, 1)
    differentiate_samples_kernel(const __grid_constant__ GradientLayers layers,
                                 const __grid_constant__ SampleGradients<typename Gradients::Number> samples,
                                 const __grid_constant__ TilesOfImages tiles) {
  if constexpr (!Gradients::kFits) {
    __trap();
  } else {
    SharedArrays shared;
    Gradients gradients(shared, layers, samples);
    tiles.each([&](int image, int first, int count) { gradients.differentiate(image, first, count); });
  }
}

// Calls f(Kind, stages) for the kind that leaves most samples to a block, with as many stages as there is room for.
template <class Kind>
struct KindType {
  using Type = Kind;
};
template <class Wide, class Narrow, class F>
auto with_room(F f) {
  const size_t room = device_limits().shared_block;
  if (Wide::bytes(2) <= room) return f(KindType<Wide>{}, Wide::bytes(3) <= room ? 3 : 2);
  return f(KindType<Narrow>{}, Narrow::bytes(3) <= room ? 3 : 2);
}
// Of<kRows, kSlab, kAccurate, kHead, kColumns> is StreamedField or StreamedGradients. Without a head, layers of 128
// channels and 64 colours have kernels of their own with resident weights: with 16-bit operands everywhere, accurate
// ones on devices with much shared memory alone.
template <template <int, int, bool, bool, int> class Of, class F>
auto with_kernel(bool accurate, bool head, int widest, F f) {
  constexpr int kHalf = kFieldWidth / 2;
  if (!accurate) {
    if (head) return with_room<Of<128, 32, false, true, kFieldWidth>, Of<64, 16, false, true, kFieldWidth>>(f);
    return with_room<Of<128, 32, false, false, kFieldWidth>, Of<64, 16, false, false, kFieldWidth>>(f);
  }
  if (head) return with_room<Of<64, 16, true, true, kFieldWidth>, Of<32, 16, true, true, kFieldWidth>>(f);
  if (widest > kHalf) return with_room<Of<64, 16, true, false, kFieldWidth>, Of<32, 16, true, false, kFieldWidth>>(f);
  return with_room<Of<128, 16, true, false, kHalf>, Of<64, 16, true, false, kHalf>>(f);
}

// The same for Of<kHead>, whose stages have a fixed number.
template <template <bool> class Of, class F>
void with_warpgroups(bool head, F f) {
  head ? f(KindType<Of<true>>{}, 0) : f(KindType<Of<false>>{}, 0);
}
// Whether it is launched: WarpgroupStreamedField or WarpgroupStreamedGradients.
template <template <bool> class Of, class Layers>
bool chooses_warpgroups(const Layers& layers, bool head, bool accurate) {
  const auto serves = [&](auto type) {
    using Kind = typename decltype(type)::Type;
    return Kind::serves(layers) && Kind::bytes(layers) <= device_limits().shared_block;
  };
  return !accurate && uses_warpgroups(kStreamedField) &&
         (head ? serves(KindType<Of<true>>{}) : serves(KindType<Of<false>>{}));
}

// Packs the transposed matrices of the products: block (image, outputs of the layer, product); threads have inputs.
// The colour layer's slabs come first, then the trunk's from the last to the second.
template <class E>
__global__ void __launch_bounds__(kFieldWidth)
    pack_transposed_kernel(const FieldTensors from, const SlabFormat format, int64_t image_halves,
                           E* __restrict__ slabs) {  // [I] of Slabs
  const int output = blockIdx.y, product = blockIdx.z, input = threadIdx.x, width = whole_strips(from.width);
  const int64_t image = blockIdx.x;
  const bool color = product == 0;
  const int outputs = color ? from.color : from.width, directions = from.has_head() ? 3 : 0;
  if (output >= whole_strips(outputs) || input >= width) return;
  float value = 0.0f;
  if (output < outputs && input < from.width) {
    const int layer = from.depth - 1 - product;  // of the trunk's
    const float* weight =
        color ? from.color_weight + (image * from.color + output) * (directions + from.width) + directions
              : from.hidden_weight + ((image * (from.depth - 1) + layer) * from.width + output) * from.width;
    value = weight[input];
  }
  const int slab_inputs = format.slab, in_slab = output % slab_inputs;
  const int before = color ? 0 : whole_strips(from.color) / slab_inputs + (product - 1) * (width / slab_inputs);
  const int64_t slab = before + output / slab_inputs;
  E* to = slabs + image * image_halves + slab * format.parts * width * slab_inputs;
  to += format.core_matrices ? (in_slab / 8 * width + input) * 8 + in_slab % 8 : input * slab_inputs + in_slab;
  const E high = from_float<E>(value);
  *to = high;
  if (format.parts > 1) to[width * slab_inputs] = from_float<E>(value - to_float(high));
}

int64_t transposed_halves(int depth, int width, int color, bool accurate) {  // of an image
  return static_cast<int64_t>(whole_strips(color) + (depth - 1) * whole_strips(width)) * whole_strips(width) *
         (accurate ? 2 : 1);
}

void check_samples(int64_t images, int64_t samples) {
  if (images * samples >= int64_t{1} << 31) throw std::invalid_argument("2^31 samples or more");
}

}  // namespace

bool field_samples_warpgroups(int depth, int width, int color, bool head, bool accurate) {
  return chooses_warpgroups<WarpgroupStreamedField>(layer_sizes(depth, width, color), head, accurate);
}

bool field_samples_backward_warpgroups(int depth, int width, int color, bool head, bool accurate) {
  GradientLayers layers = {};
  layers.products = depth, layers.width = whole_strips(width), layers.color = whole_strips(color);
  return chooses_warpgroups<WarpgroupStreamedGradients>(layers, head, accurate);
}

int64_t field_samples_workspace(int64_t images, int depth, int width, int color, bool head, bool accurate) {
  return packed_field_bytes(images, depth, width, color, head, accurate);
}

void field_samples(cudaStream_t stream, Pointer origins, Pointer directions, Pointer depths, Pointer first_weight,
                   Pointer first_bias, Pointer hidden_weight, Pointer hidden_bias, Pointer trunk_gain,
                   Pointer trunk_shift, Pointer density_weight, Pointer density_bias, Pointer color_weight,
                   Pointer color_bias, Pointer color_gain, Pointer color_shift, Pointer head_weight, Pointer head_bias,
                   Pointer workspace, Pointer inputs, Pointer slopes, Pointer color_slopes, Pointer activations,
                   Pointer density, Pointer colors, int64_t images, int64_t rays, int samples, int depth, int width,
                   int color, double ball_density, double ball_radius, bool accurate) {
  check_samples(images, rays * samples);
  const FieldTensors tensors =
      field_tensors(first_weight, first_bias, hidden_weight, hidden_bias, trunk_gain, trunk_shift, density_weight,
                    color_weight, color_bias, color_gain, color_shift, head_weight, depth, width, color);
  const SampledRays of_rays = {input<float>(origins), input<float>(directions), input<float>(depths), samples,
                               static_cast<int>(images * rays * samples)};
  const auto run = [&](auto type, int stages) {
    using Field = typename decltype(type)::Type;
    using T = typename Field::Record;
    const SampleRecords<T> records = {output<T>(inputs),      output<T>(slopes),      output<T>(color_slopes),
                                      output<T>(activations), output<float>(density), output<float>(colors)};
    StreamedLayers layers = pack_field(stream, tensors, images, SlabFormat::of<Field>(), workspace);
    layers.slabs.stages = stages;
    layers.density_bias = input<float>(density_bias), layers.head_bias = input<float>(head_bias);
    layers.ball = {static_cast<float>(ball_density), static_cast<float>(ball_radius)};
    const TilesOfImages tiles(images, rays * samples, Field::step(kStreamWarps));
    launch(record_samples_kernel<Field>, dim3(tiles.blocks()), dim3(kStreamThreads), Field::bytes(layers), stream,
           of_rays, records, layers, tiles);
  };
  const bool head = tensors.has_head();
  if (field_samples_warpgroups(depth, width, color, head, accurate))
    with_warpgroups<WarpgroupStreamedField>(head, run);
  else
    with_kernel<StreamedField>(accurate, head, std::max(width, color), run);
}

int64_t field_samples_backward_workspace(int64_t images, int depth, int width, int color, bool head, bool accurate) {
  return static_cast<int64_t>(sizeof(half)) * (head ? 1 : images) * transposed_halves(depth, width, color, accurate);
}

void field_samples_backward(cudaStream_t stream, Pointer of_density, Pointer of_colors, Pointer hidden_weight,
                            Pointer trunk_gain, Pointer density_weight, Pointer color_weight, Pointer color_gain,
                            Pointer head_weight, Pointer scales, Pointer workspace, Pointer slopes,
                            Pointer color_slopes, int64_t images, int64_t samples, int depth, int width, int color,
                            bool accurate) {
  check_samples(images, samples);
  const FieldTensors tensors = field_tensors(0, 0, hidden_weight, 0, trunk_gain, 0, density_weight, color_weight, 0,
                                             color_gain, 0, head_weight, depth, width, color);
  const auto run = [&](auto type, int stages) {
    using Gradients = typename decltype(type)::Type;
    using E = typename Gradients::E;
    using Number = typename Gradients::Number;
    const int wide = whole_strips(width), wide_color = whole_strips(color);
    const SampleGradients<Number> gradients = {input<float>(of_density),     input<float>(of_colors),
                                               input<float>(scales),         output<Number>(slopes),
                                               output<Number>(color_slopes), static_cast<int>(images * samples)};
    const int64_t image_halves = transposed_halves(depth, width, color, accurate);
    E* slabs = output<E>(workspace);
    launch(pack_transposed_kernel<E>,
           dim3(tensors.has_head() ? 1 : blocks_for(images, 1), std::max(wide, wide_color), depth), dim3(kFieldWidth),
           0, stream, tensors, SlabFormat::of<Gradients>(), image_halves, slabs);
    const GradientLayers layers = {{reinterpret_cast<const half*>(slabs),
                                    (wide_color + (depth - 1) * wide) / Gradients::kSlab, wide, stages, 0, 0},
                                   tensors.has_head() ? 0 : image_halves,
                                   tensors.trunk_gain,
                                   tensors.color_gain,
                                   tensors.density_weight,
                                   tensors.head_weight,
                                   depth,
                                   wide,
                                   wide_color,
                                   width,
                                   color};
    const TilesOfImages tiles(images, samples, Gradients::kRows);
    launch(differentiate_samples_kernel<Gradients>, dim3(tiles.blocks()), dim3(kStreamThreads),
           Gradients::bytes(layers), stream, layers, gradients, tiles);
  };
  const bool head = tensors.has_head();
  if (field_samples_backward_warpgroups(depth, width, color, head, accurate))
    with_warpgroups<WarpgroupStreamedGradients>(head, run);
  else
    with_kernel<StreamedGradients>(accurate, head, std::max(width, color), run);
}

}  // namespace cips3d

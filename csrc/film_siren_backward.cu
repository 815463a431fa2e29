// Gradients of a sine layer: the slope of the phase, from the phase computed anew, and what it gives for the inputs.
// The parameters' are in film_siren_weight_gradient.cu, those of layers on points in film_siren_points.cu.
//
//   slope = cos(phase) dy,   dx = (slope gain) W
//
// 128 to 128 channels in fp32, in units of one tensor of activations: this reads x and dy and writes the slope, reads
// the slope and writes dx; with the parameters' gradients, which read the slope and x, that is 7 units (5.5 with
// `fast`, whose slope is bf16). Plain PyTorch moves 10 and keeps a phase from the forward.
#include "sine_layer.h"

namespace cips3d {
namespace {

constexpr int kPrepareThreads = 128;  // a row of the matrix for each warp

template <class T, class S>
struct SlopeEpilogue : PhaseEpilogue<SlopeEpilogue<T, S>, T> {
  static constexpr int kRowsAtOnce = 2;
  const T* dy;  // [B, rows, out]
  S* slope;     // [B, rows, out]

  template <int kHeight>
  __device__ __forceinline__ void read(float (&gradients)[kHeight][4], int64_t at, int rows, int stride, int count,
                                       bool wide) const {
    load_rows(gradients, dy + at, rows, stride, count, wide);
  }
  __device__ __forceinline__ static float apply(float phase, float gradient) { return cosine_of(phase) * gradient; }
  __device__ __forceinline__ void store(const float (&slopes)[4], int64_t at, int count, bool wide) const {
    store_four(slope + at, slopes, count, wide);
  }
};

template <class T>
struct LinearEpilogue {
  static constexpr bool kGuarded = false, kMeasured = false, kApplied = false;
  static constexpr int kRowsAtOnce = 1;
  T* y;  // [B, rows, columns]

  __device__ __forceinline__ void store(const float (&values)[4], int64_t at, int count, bool wide) const {
    store_four(y + at, values, count, wide);
  }
};

// Packs (gain W)^T [B or 1, in, out]: the slope's products with it go over the outputs.
template <class E>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_transposed_kernel(SineLayer layer, uint4* __restrict__ units,  // [B or 1, packed]
                              float* __restrict__ multiplier) {            // [B, padded]
  const int padded = padded_columns(layer.in), rows = kPrepareThreads / 32;
  const int row = blockIdx.x % (padded / rows) * rows + threadIdx.x / 32, image = blockIdx.x / (padded / rows);
  const float* weight = layer.weight + image * layer.weight_stride() + row;
  const float* gain = layer.gain ? layer.gain + int64_t{image} * layer.out : nullptr;
  const bool inside = row < layer.in;
  const float scale =
      pack_row<E>(units + image * packed_units(layer.in, layer.out), row, padded, layer.out, [=](int o) {
        if (!inside) return 0.0f;
        return weight[int64_t{o} * layer.in] * (gain ? gain[o] : 1.0f);
      });
  if (threadIdx.x % 32 == 0) multiplier[int64_t{image} * padded + row] = inside ? inverse_scale(scale) : 0.0f;
}

template <class E, class S, class T>
void launch_input_gradient(cudaStream_t stream, const SineLayer& layer, Pointer slope, Pointer workspace, Pointer dx,
                           int64_t rows, bool fast) {
  check_images(layer.batch);
  const LayerWorkspace memory(workspace, layer.batch, layer.batch, layer.in, layer.out);
  const int64_t blocks = layer.batch * padded_columns(layer.in) / (kPrepareThreads / 32);
  launch(prepare_transposed_kernel<E>, dim3(blocks_for(blocks, 1)), kPrepareThreads, 0, stream, layer, memory.units,
         memory.multiplier);
  const PackedMatrix matrix = {memory.units, memory.multiplier, nullptr, packed_units(layer.in, layer.out),
                               layer.in,     layer.out};
  const LinearEpilogue<T> epilogue = {output<T>(dx)};
  const bool wide = layer.in % 4 == 0 && aligned_to(epilogue.y, 4 * sizeof(T));
  launch_product<E>(stream, input<S>(slope), matrix, epilogue, layer.batch, rows, wide, fast);
}

template <class T, class S>
void launch_slope(cudaStream_t stream, const SineLayer& layer, Pointer x, Pointer dy, Pointer workspace, Pointer slope,
                  int64_t rows, bool fast) {
  const PackedMatrix matrix = prepare_phase(stream, layer, kRowScale<half, T>, workspace);
  SlopeEpilogue<T, S> epilogue;
  epilogue.weight = layer.weight, epilogue.weight_stride = layer.weight_stride();
  epilogue.dy = input<T>(dy), epilogue.slope = output<S>(slope);
  const bool wide =
      layer.out % 4 == 0 && aligned_to(epilogue.dy, 4 * sizeof(T)) && aligned_to(epilogue.slope, 4 * sizeof(S));
  launch_product<half>(stream, input<T>(x), matrix, epilogue, layer.batch, rows, wide, fast);
}

}  // namespace

int64_t film_siren_backward_workspace(int64_t batch, int in, int out, bool shared) {
  return std::max(LayerWorkspace::bytes(shared ? 1 : batch, batch, out, in),
                  LayerWorkspace::bytes(batch, batch, in, out));
}

void film_siren_slope(cudaStream_t stream, int dtype, bool fast, Pointer x, Pointer dy, Pointer weight, Pointer bias,
                      Pointer gain, Pointer shift, Pointer workspace, Pointer slope, int64_t batch, int64_t rows,
                      int in, int out, bool shared) {
  const SineLayer layer = {
      input<float>(weight), input<float>(bias), input<float>(gain), input<float>(shift), batch, in, out, shared};
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    if (std::is_same<T, float>::value && fast)
      launch_slope<T, bfloat16>(stream, layer, x, dy, workspace, slope, rows, fast);
    else
      launch_slope<T, T>(stream, layer, x, dy, workspace, slope, rows, fast);
  });
}

void film_siren_input_gradient(cudaStream_t stream, int dtype, bool fast, Pointer slope, Pointer weight, Pointer gain,
                               Pointer workspace, Pointer dx, int64_t batch, int64_t rows, int in, int out,
                               bool shared) {
  const SineLayer layer = {input<float>(weight), nullptr, input<float>(gain), nullptr, batch, in, out, shared};
  switch (static_cast<DType>(dtype)) {
    case DType::kFloat32:
      if (fast)
        return launch_input_gradient<bfloat16, bfloat16, float>(stream, layer, slope, workspace, dx, rows, true);
      return launch_input_gradient<bfloat16, float, float>(stream, layer, slope, workspace, dx, rows, false);
    case DType::kFloat16:
      return launch_input_gradient<half, half, half>(stream, layer, slope, workspace, dx, rows, fast);
    case DType::kBFloat16:
      return launch_input_gradient<bfloat16, bfloat16, bfloat16>(stream, layer, slope, workspace, dx, rows, fast);
  }
}

}  // namespace cips3d

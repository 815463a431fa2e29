// A sine layer with feature-wise linear modulation: one product whose sums become sines before they leave the
// registers.
//
// 128 to 128 channels in fp32: a row of x is read and a row of y written, 1 KB, for 128 * 128 * 3 multiply-adds of
// 16-bit numbers. At 4.3 TB/s and 500 TFLOP/s the memory takes a fifth longer, and the two overlap.
#include "sine_layer.h"

namespace cips3d {
namespace {

constexpr int kPrepareThreads = 128;  // a row of the matrix for each warp

__global__ void __launch_bounds__(kPrepareThreads) prepare_phase_kernel(SineLayer layer, float row_scale,
                                                                        uint4* __restrict__ units,  // [B or 1, packed]
                                                                        float* __restrict__ multiplier,  // [B, padded]
                                                                        float* __restrict__ offset) {    // [B, padded]
  const int padded = padded_columns(layer.out), rows = kPrepareThreads / 32;
  const int row = blockIdx.x % (padded / rows) * rows + threadIdx.x / 32, matrix = blockIdx.x / (padded / rows);
  const bool inside = row < layer.out;
  const float* weight = layer.weight + matrix * layer.weight_stride() + int64_t{inside ? row : 0} * layer.in;
  const float scale = row_scale * pack_row<half>(units + matrix * packed_units(layer.out, layer.in), row, padded,
                                                 layer.in, [=](int k) { return inside ? weight[k] : 0.0f; });
  const int64_t images = layer.shared ? layer.batch : 1;
  for (int64_t i = threadIdx.x % 32; i < images; i += 32) {
    const int64_t image = layer.shared ? i : matrix, at = image * layer.out + row;
    float by = 0.0f, from = 0.0f;
    if (inside) {
      by = static_cast<float>(double(layer.gain ? layer.gain[at] : 1.0f) * kRevolutionsARadian * inverse_scale(scale));
      from = phase_offset(layer.bias + int64_t{matrix} * layer.out + row, layer.gain, layer.shift, at);
    }
    multiplier[image * padded + row] = by;
    offset[image * padded + row] = from;
  }
}

template <class T>
struct SineEpilogue : PhaseEpilogue<SineEpilogue<T>, T> {
  static constexpr int kRowsAtOnce = 4;
  T* y;  // [B, rows, out]

  template <int kHeight>
  __device__ __forceinline__ void read(float (&)[kHeight][4], int64_t, int, int, int, bool) const {}
  __device__ __forceinline__ static float apply(float phase, float) { return sine_of(phase); }
  __device__ __forceinline__ void store(const float (&sines)[4], int64_t at, int count, bool wide) const {
    store_four(y + at, sines, count, wide);
  }
};

}  // namespace

PackedMatrix prepare_phase(cudaStream_t stream, const SineLayer& layer, float row_scale, Pointer workspace) {
  check_images(layer.batch);  // before anything is launched for them
  const LayerWorkspace memory(workspace, layer.matrices(), layer.batch, layer.out, layer.in);
  const int64_t blocks = layer.matrices() * padded_columns(layer.out) / (kPrepareThreads / 32);
  launch(prepare_phase_kernel, dim3(blocks_for(blocks, 1)), kPrepareThreads, 0, stream, layer, row_scale, memory.units,
         memory.multiplier, memory.offset);
  return {memory.units, memory.multiplier, memory.offset, layer.shared ? 0 : packed_units(layer.out, layer.in),
          layer.out,    layer.in};
}

int64_t film_siren_workspace(int64_t batch, int in, int out, bool shared) {
  return LayerWorkspace::bytes(shared ? 1 : batch, batch, out, in);
}

void film_siren(cudaStream_t stream, int dtype, bool fast, Pointer x, Pointer weight, Pointer bias, Pointer gain,
                Pointer shift, Pointer workspace, Pointer y, int64_t batch, int64_t rows, int in, int out,
                bool shared) {
  const SineLayer layer = {
      input<float>(weight), input<float>(bias), input<float>(gain), input<float>(shift), batch, in, out, shared};
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const PackedMatrix matrix = prepare_phase(stream, layer, kRowScale<half, T>, workspace);
    SineEpilogue<T> epilogue;
    epilogue.weight = layer.weight, epilogue.weight_stride = layer.weight_stride();
    epilogue.y = output<T>(y);
    const bool wide = out % 4 == 0 && aligned_to(epilogue.y, 4 * sizeof(T));
    launch_product<half>(stream, input<T>(x), matrix, epilogue, batch, rows, wide, fast);
  });
}

}  // namespace cips3d

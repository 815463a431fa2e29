// What surrounds the matrix product of a modulated layer, in one pass: demodulation, leaky ReLU, skip, the modulation
// of the layer that follows and the sum of colours; and all gradients of that, in one pass too. Bound by memory: every
// activation is read or written once, and what belongs to a channel or a pixel's colour is a few percent beside it.
#include "magnitude.h"
#include "operand.h"
#include "ops.h"

namespace cips3d {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kColors = 3;

// What a thread needs of a row [C] of factors; all the same where there is none.
template <int N>
__device__ __forceinline__ void load_factors(const float* p, float otherwise, float (&factors)[N]) {
#pragma unroll
  for (int e = 0; e < N; e++) factors[e] = otherwise;
  if (p == nullptr) return;
  const Vector<float, N> row = *reinterpret_cast<const Vector<float, N>*>(p);
#pragma unroll
  for (int e = 0; e < N; e++) factors[e] = row.value[e];
}

// N elements of T as they lie in memory: numbers of 16 bits stay in pairs, a register each, until they are used.
template <class T, int N>
constexpr bool kInPairs = sizeof(T) == 2 && N % 2 == 0;
template <class T, int N>
using Packed = Vector<std::conditional_t<kInPairs<T, N>, uint32_t, T>, kInPairs<T, N> ? N / 2 : N>;

template <class T, int N>
__device__ __forceinline__ Packed<T, N> load(const T* p) {
  return *reinterpret_cast<const Packed<T, N>*>(p);
}

template <class T, int N>
__device__ __forceinline__ void unpack(const Packed<T, N>& packed, float (&values)[N]) {
  if constexpr (kInPairs<T, N>) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
      const float2 pair = Operand<T>::unpack(packed.value[k]);
      values[2 * k] = pair.x, values[2 * k + 1] = pair.y;
    }
  } else {
#pragma unroll
    for (int e = 0; e < N; e++) values[e] = to_float(packed.value[e]);
  }
}

template <class T, int N>
__device__ __forceinline__ void store(T* p, const float (&values)[N]) {
  Packed<T, N> packed;
  if constexpr (kInPairs<T, N>) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) packed.value[k] = Operand<T>::pack(values[2 * k], values[2 * k + 1]);
  } else {
#pragma unroll
    for (int e = 0; e < N; e++) packed.value[e] = from_float<T>(values[e]);
  }
  *reinterpret_cast<Packed<T, N>*>(p) = packed;
}

// ---- forward ----

// Rows of a group of lanes at once: loads in flight, and the factors of channels are read once for all.
constexpr int kForwardRows = 4;
// Blocks of a multiprocessor, as many as registers suffice for: their loads in flight are at least 32 KB.
template <class T, bool kRgb>
constexpr int kForwardBlocks = kRgb ? 2 : (sizeof(T) == 4 ? 3 : 4);

// y = lrelu(product * demodulation) + skip, modulated = y * next_modulation, rgb_sum = rgb + y · rgb_weight.
// 2^lane_bits neighbours share the channels of a row, so that a colour is a sum over shuffles; a block has
// kForwardRows * kThreads / 2^lane_bits rows of one image. Without colours it needs fewer registers: more loads in
// flight.
template <class T, int N, bool kRgb>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<T, kRgb>)
    modulated_epilogue_kernel(const T* __restrict__ product,              // [B, P, C]
                              const float* __restrict__ demodulation,     // [B, C] or null: ones
                              const T* __restrict__ skip,                 // [B, P, C] or null: zeros
                              const float* __restrict__ next_modulation,  // [B, C], where `modulated` is
                              const float* __restrict__ rgb_weight,       // [3, C]
                              const float* __restrict__ rgb,              // [B, P, 3] or null: zeros
                              T* __restrict__ y,                          // [B, P, C] or null
                              T* __restrict__ modulated,                  // [B, P, C] or null
                              float* __restrict__ rgb_sum,                // [B, P, 3]
                              int* __restrict__ largest,                  // of `modulated`, or null
                              int64_t pixels, int channels, int lane_bits, unsigned blocks_an_image, float slope) {
  const int lanes = 1 << lane_bits, lane = threadIdx.x & (lanes - 1), groups = kThreads >> lane_bits;
  const int64_t image = blockIdx.x / blocks_an_image;
  const int64_t tile = static_cast<int64_t>(blockIdx.x % blocks_an_image) * (groups * kForwardRows);
  const int64_t first = image * pixels + tile;  // row of [B * P] where the block begins
  const int64_t start = first * channels;
  const int rows = static_cast<int>(min(pixels - tile, static_cast<int64_t>(groups * kForwardRows)));
  unsigned row[kForwardRows];  // from `first` on; past the end the last one, computed again and not stored
  bool inside[kForwardRows];
  float color[kForwardRows][kColors] = {};
  [[maybe_unused]] int most = 0;
#pragma unroll
  for (int r = 0; r < kForwardRows; r++) {
    const int wanted = static_cast<int>(threadIdx.x >> lane_bits) + r * groups;
    inside[r] = wanted < rows;
    row[r] = min(wanted, rows - 1);
    if constexpr (kRgb) {
#pragma unroll
      for (int k = 0; k < kColors; k++)
        if (rgb != nullptr && lane == 0) color[r][k] = rgb[first * kColors + (row[r] * kColors + k)];
    }
  }
#pragma unroll 1
  for (int c = lane * N; c < channels; c += lanes * N) {
    unsigned at[kForwardRows];  // from `start` on: 32 bits save registers
#pragma unroll
    for (int r = 0; r < kForwardRows; r++) at[r] = row[r] * channels + c;
    Packed<T, N> in[kForwardRows], residual[kForwardRows];
#pragma unroll
    for (int r = 0; r < kForwardRows; r++) in[r] = load<T, N>(product + start + at[r]);
    if (skip != nullptr) {
#pragma unroll
      for (int r = 0; r < kForwardRows; r++) residual[r] = load<T, N>(skip + start + at[r]);
    }
    float scale[N], next_scale[N], weight[kColors][N];
    load_factors(demodulation ? demodulation + image * channels + c : nullptr, 1.0f, scale);
    load_factors(modulated ? next_modulation + image * channels + c : nullptr, 0.0f, next_scale);
    if constexpr (kRgb) {
#pragma unroll
      for (int k = 0; k < kColors; k++) load_factors(rgb_weight + k * channels + c, 0.0f, weight[k]);
    }
#pragma unroll
    for (int r = 0; r < kForwardRows; r++) {
      float out[N], add[N] = {};
      unpack<T>(in[r], out);
      if (skip != nullptr) unpack<T>(residual[r], add);
#pragma unroll
      for (int e = 0; e < N; e++) {
        const float h = out[e] * scale[e];
        out[e] = (h > 0.0f ? h : h * slope) + add[e];
        if constexpr (kRgb) {
#pragma unroll
          for (int k = 0; k < kColors; k++) color[r][k] += out[e] * weight[k][e];
        }
      }
      if (y != nullptr && inside[r]) store(y + start + at[r], out);
#pragma unroll
      for (int e = 0; e < N; e++) out[e] *= next_scale[e];
      if constexpr (kMeasures<T>) measure(most, out);
      if (modulated != nullptr && inside[r]) store(modulated + start + at[r], out);
    }
  }
  if constexpr (kMeasures<T>) {
    if (largest != nullptr) raise(largest, most);
  }
  if constexpr (kRgb) {
#pragma unroll
    for (int r = 0; r < kForwardRows; r++) {
#pragma unroll
      for (int k = 0; k < kColors; k++) {
        for (int offset = lanes / 2; offset > 0; offset /= 2) color[r][k] += __shfl_xor_sync(~0u, color[r][k], offset);
        if (lane == 0 && inside[r]) rgb_sum[first * kColors + (row[r] * kColors + k)] = color[r][k];
      }
    }
  }
}

// ---- backward ----

// Sums over pixels that the backward has for every channel: of demodulation, next_modulation and the three colours.
enum Sum { kDemodulation, kNextModulation, kRgbWeight, kSums = kRgbWeight + kColors };

// Rows of a thread at once: 128 bytes of the four tensors in flight, and no more registers than two blocks may have.
template <class T>
constexpr int kBackwardRows = sizeof(T) == 4 ? 2 : 4;

// With dy = grad_output + grad_modulated * next_modulation + grad_rgb · rgb_weight and h = product * demodulation:
// grad_skip = dy, dh = dy * (h > 0 ? 1 : slope), grad_product = dh * demodulation, and sums over the pixels of a part:
// dh * product, grad_modulated * y, grad_rgb_k * y. h and y are computed anew.
// A block has one part of an image's pixels and a strip of channels, a thread always the same N channels: its sums stay
// in registers. `columns` (a power of two) threads lie side by side on a row, kThreads / columns rows at a time.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, 2)
    modulated_epilogue_backward_kernel(const T* __restrict__ product,              // [B, P, C]
                                       const float* __restrict__ demodulation,     // [B, C] or null: ones
                                       const T* __restrict__ skip,                 // [B, P, C] or null: zeros
                                       const float* __restrict__ next_modulation,  // [B, C], where grad_modulated is
                                       const float* __restrict__ rgb_weight,       // [3, C], where grad_rgb is
                                       const T* __restrict__ grad_output,          // [B, P, C] or null: zeros
                                       const T* __restrict__ grad_modulated,       // [B, P, C] or null: zeros
                                       const float* __restrict__ grad_rgb,         // [B, P, 3] or null: zeros
                                       T* __restrict__ grad_product,               // [B, P, C] or null
                                       T* __restrict__ grad_skip,                  // [B, P, C] or null
                                       float* __restrict__ partial,                // [B, parts, kSums, C] or null
                                       int* __restrict__ largest,                  // of grad_product, or null
                                       int64_t pixels, int channels, int column_bits, unsigned strips, unsigned parts,
                                       int64_t part_pixels, float slope) {
  constexpr int R = kBackwardRows<T>;
  const int columns = 1 << column_bits, column = threadIdx.x & (columns - 1);
  const int slot = threadIdx.x >> column_bits, slots = kThreads >> column_bits;
  const int strip = static_cast<int>(blockIdx.x % strips) << column_bits, c = (strip + column) * N;
  const unsigned image_part = blockIdx.x / strips;
  const int64_t image = image_part / parts, begin = image_part % parts * part_pixels;
  const int64_t first = image * pixels + begin;  // row of [B * P] where the part begins
  const int rows = static_cast<int>(min(pixels - begin, part_pixels));
  float sums[kSums][N] = {};
  [[maybe_unused]] int most = 0;
  if (c < channels) {
    float scale[N], next_scale[N], weight[kColors][N];
    load_factors(demodulation ? demodulation + image * channels + c : nullptr, 1.0f, scale);
    load_factors(grad_modulated ? next_modulation + image * channels + c : nullptr, 0.0f, next_scale);
#pragma unroll
    for (int k = 0; k < kColors; k++) load_factors(grad_rgb ? rgb_weight + k * channels + c : nullptr, 0.0f, weight[k]);
#pragma unroll 1
    for (int row = slot; row < rows; row += R * slots) {
      const int64_t at = (first + row) * channels + c;
      Packed<T, N> in[R], residual[R], from_output[R], from_modulated[R];
      float d_rgb[R][kColors];
#pragma unroll
      for (int r = 0; r < R; r++) {
        const unsigned ahead = min(r * slots, rows - 1 - row);  // past the end: the last row, not used
        in[r] = load<T, N>(product + at + ahead * channels);
        if (skip != nullptr) residual[r] = load<T, N>(skip + at + ahead * channels);
        if (grad_output != nullptr) from_output[r] = load<T, N>(grad_output + at + ahead * channels);
        if (grad_modulated != nullptr) from_modulated[r] = load<T, N>(grad_modulated + at + ahead * channels);
        const int64_t color = (first + row + ahead) * kColors;
#pragma unroll
        for (int k = 0; k < kColors; k++) d_rgb[r][k] = grad_rgb != nullptr ? grad_rgb[color + k] : 0.0f;
      }
#pragma unroll
      for (int r = 0; r < R; r++) {
        if (row + r * slots >= rows) break;
        float p[N], add[N] = {}, dy[N] = {}, d_modulated[N] = {};
        unpack<T>(in[r], p);
        if (skip != nullptr) unpack<T>(residual[r], add);
        if (grad_output != nullptr) unpack<T>(from_output[r], dy);
        if (grad_modulated != nullptr) unpack<T>(from_modulated[r], d_modulated);
#pragma unroll
        for (int e = 0; e < N; e++) {
          const float h = p[e] * scale[e], factor = h > 0.0f ? 1.0f : slope, y = h * factor + add[e];
          dy[e] += d_modulated[e] * next_scale[e];
          sums[kNextModulation][e] += d_modulated[e] * y;
#pragma unroll
          for (int k = 0; k < kColors; k++) {
            dy[e] += d_rgb[r][k] * weight[k][e];
            sums[kRgbWeight + k][e] += d_rgb[r][k] * y;
          }
          const float dh = dy[e] * factor;
          sums[kDemodulation][e] += dh * p[e];
          p[e] = dh * scale[e];
        }
        if constexpr (kMeasures<T>) measure(most, p);
        const unsigned ahead = r * slots * channels;
        if (grad_product != nullptr) store(grad_product + at + ahead, p);
        if (grad_skip != nullptr) store(grad_skip + at + ahead, dy);
      }
    }
  }
  if constexpr (kMeasures<T>) {
    if (largest != nullptr) raise(largest, most);
  }
  if (partial == nullptr) return;
  SharedArrays shared;
  const int width = columns * N;
  float* slot_sums = shared.take<float>(kSums * N * kThreads);  // [slots, kSums, width]
#pragma unroll
  for (int s = 0; s < kSums; s++) {
#pragma unroll
    for (int e = 0; e < N; e++) slot_sums[(slot * kSums + s) * width + column * N + e] = sums[s][e];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSums * width; i += kThreads) {
    const int s = i / width, channel = strip * N + i % width;
    if (channel >= channels) continue;
    float sum = 0.0f;
    for (int k = 0; k < slots; k++) sum += slot_sums[k * kSums * width + i];
    partial[(static_cast<int64_t>(image_part) * kSums + s) * channels + channel] = sum;
  }
}

// Adds up the parts in a fixed order: grad_demodulation and grad_next_modulation of every image, grad_rgb_weight over
// all images. A block has 32 channels of one row of one of these.
__global__ void __launch_bounds__(kThreads)
    add_epilogue_parts_kernel(const float* __restrict__ partial,         // [B, parts, kSums, C]
                              float* __restrict__ grad_demodulation,     // [B, C] or null
                              float* __restrict__ grad_next_modulation,  // [B, C] or null
                              float* __restrict__ grad_rgb_weight,       // [3, C] or null
                              int64_t batch, int64_t parts, int channels) {
  constexpr int kSlots = kThreads / kWarp;
  const int strips = ceil_div(channels, kWarp);
  const int64_t row = blockIdx.x / strips;  // B rows of demodulation, B of next_modulation, 3 of colours
  const int channel = blockIdx.x % strips * kWarp + threadIdx.x % kWarp, slot = threadIdx.x / kWarp;
  const bool of_color = row >= 2 * batch;
  const int64_t image = of_color ? 0 : row % batch, count = of_color ? batch * parts : parts;
  const int sum_index = of_color ? static_cast<int>(kRgbWeight + row - 2 * batch) : static_cast<int>(row / batch);
  float* to = of_color ? grad_rgb_weight : sum_index == kDemodulation ? grad_demodulation : grad_next_modulation;
  if (to == nullptr) return;
  SharedArrays shared;
  float* slot_sums = shared.take<float>(kThreads);  // [kSlots, kWarp]
  float sum = 0.0f;
  if (channel < channels) {
    const float* from = partial + (image * parts * kSums + sum_index) * channels + channel;
#pragma unroll 4
    for (int64_t part = slot; part < count; part += kSlots) sum += from[part * kSums * channels];
  }
  slot_sums[threadIdx.x] = sum;
  __syncthreads();
  if (slot != 0 || channel >= channels) return;
  for (int k = 1; k < kSlots; k++) sum += slot_sums[k * kWarp + threadIdx.x];
  to[(of_color ? row - 2 * batch : image) * channels + channel] = sum;
}

constexpr int kVector = 4;  // channels of a thread at a time; with 8, their factors and sums fill its registers

// Calls f with kVector where the channels divide into such vectors and everything is aligned for them, else with 1.
template <class T, class F>
void for_channel_vector(int64_t channels, std::initializer_list<const void*> activations,
                        std::initializer_list<const void*> channel_factors, F f) {
  for_vector<kVector>(moves_in_vectors<T, kVector>(channels, activations) &&
                          moves_in_vectors<float, kVector>(channels, channel_factors),
                      f);
}

// The logarithm of the smallest power of two that is not below `count`, or of `most`.
int bits_for(int64_t count, int most) {
  int bits = 0;
  while ((1 << bits) < std::min<int64_t>(count, most)) bits++;
  return bits;
}

// Offsets within a block's rows are 32-bit numbers.
void check_channels(int channels) {
  if (channels > 1 << 20) throw std::invalid_argument("more than 2^20 channels");
}

}  // namespace

void modulated_epilogue(cudaStream_t stream, int dtype, Pointer product, Pointer demodulation, Pointer skip,
                        Pointer next_modulation, Pointer rgb_weight, Pointer rgb, Pointer y, Pointer modulated,
                        Pointer rgb_sum, Pointer largest, int64_t batch, int64_t pixels, int channels, double slope) {
  check_channels(channels);
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const T *product_ = input<T>(product), *skip_ = input<T>(skip);
    const float *demodulation_ = input<float>(demodulation), *next_modulation_ = input<float>(next_modulation);
    const float *rgb_weight_ = input<float>(rgb_weight), *rgb_ = input<float>(rgb);
    T *y_ = output<T>(y), *modulated_ = output<T>(modulated);
    float* rgb_sum_ = output<float>(rgb_sum);
    for_channel_vector<T>(
        channels, {product_, skip_, y_, modulated_}, {demodulation_, next_modulation_, rgb_weight_}, [&](auto width) {
          constexpr int N = decltype(width)::value;
          const int lane_bits = bits_for(ceil_div(channels, N), kWarp);
          const int64_t block_rows = (kThreads >> lane_bits) * kForwardRows;
          const int64_t blocks_an_image = ceil_div(pixels, block_rows);
          const auto kernel = rgb_sum_ ? modulated_epilogue_kernel<T, N, true> : modulated_epilogue_kernel<T, N, false>;
          launch(kernel, dim3(blocks_for(batch * blocks_an_image, 1)), kThreads, 0, stream, product_, demodulation_,
                 skip_, next_modulation_, rgb_weight_, rgb_, y_, modulated_, rgb_sum_, output<int>(largest), pixels,
                 channels, lane_bits, blocks_an_image, slope);
        });
  });
}

int64_t modulated_epilogue_parts(int64_t batch, int64_t pixels, int channels) {
  // Several times what a large device holds at once, and the same number on every device so that sums are the same
  // too; fewer where the parts of an image would be so short that their sums weigh.
  constexpr int64_t kBlocksWanted = 1056, kFewestRows = 16;
  const int columns = 1 << bits_for(ceil_div(channels, kVector), kThreads);
  const int64_t wanted = ceil_div(kBlocksWanted, batch * ceil_div(channels, columns * kVector));
  return std::max<int64_t>(1, std::min(wanted, pixels / (kFewestRows * (kThreads / columns))));
}

void modulated_epilogue_backward(cudaStream_t stream, int dtype, Pointer product, Pointer demodulation, Pointer skip,
                                 Pointer next_modulation, Pointer rgb_weight, Pointer grad_output,
                                 Pointer grad_modulated, Pointer grad_rgb, Pointer grad_product,
                                 Pointer grad_demodulation, Pointer grad_skip, Pointer grad_next_modulation,
                                 Pointer grad_rgb_weight, Pointer partial, Pointer largest, int64_t batch,
                                 int64_t pixels, int channels, int64_t parts, double slope) {
  check_channels(channels);
  float* partial_ = output<float>(partial);
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const T *product_ = input<T>(product), *skip_ = input<T>(skip), *grad_output_ = input<T>(grad_output);
    const T* grad_modulated_ = input<T>(grad_modulated);
    const float *demodulation_ = input<float>(demodulation), *next_modulation_ = input<float>(next_modulation);
    const float *rgb_weight_ = input<float>(rgb_weight), *grad_rgb_ = input<float>(grad_rgb);
    T *grad_product_ = output<T>(grad_product), *grad_skip_ = output<T>(grad_skip);
    for_channel_vector<T>(channels, {product_, skip_, grad_output_, grad_modulated_, grad_product_, grad_skip_},
                          {demodulation_, next_modulation_, rgb_weight_}, [&](auto width) {
                            constexpr int N = decltype(width)::value;
                            const int column_bits = bits_for(ceil_div(channels, N), kThreads);
                            const int strips = ceil_div(channels, N << column_bits);
                            const size_t shared = partial_ ? shared_bytes<float>(kSums * N * kThreads) : 0;
                            launch(modulated_epilogue_backward_kernel<T, N>,
                                   dim3(blocks_for(batch * parts * strips, 1)), kThreads, shared, stream, product_,
                                   demodulation_, skip_, next_modulation_, rgb_weight_, grad_output_, grad_modulated_,
                                   grad_rgb_, grad_product_, grad_skip_, partial_, output<int>(largest), pixels,
                                   channels, column_bits, strips, parts, ceil_div(pixels, parts), slope);
                          });
  });
  if (partial_ == nullptr) return;
  const int64_t rows = 2 * batch + kColors;
  launch(add_epilogue_parts_kernel, dim3(blocks_for(rows * ceil_div(channels, kWarp), 1)), kThreads,
         shared_bytes<float>(kThreads), stream, partial_, output<float>(grad_demodulation),
         output<float>(grad_next_modulation), output<float>(grad_rgb_weight), batch, parts, channels);
}

}  // namespace cips3d

// Bias, leaky ReLU and gain in one pass, its gradients with the bias gradient in the same pass, and the linear map
// that both derivatives of any order are made of. Bound by memory: every tensor is read or written once.
#include "ops.h"

namespace cips3d {
namespace {

constexpr int kThreads = 256;
constexpr int kPartThreads = 256;  // threads that add up one part of a channel

// Independent loads in flight; fewer with 64-bit indices, which take the registers.
template <class Index>
constexpr int kVectorsAThread = sizeof(Index) == 4 ? 4 : 1;

// y = gain * lrelu(x + bias), or with a sign tensor, y = gain * slope(sign) * (x + bias), slope 1 where sign > 0.
template <class T, int N, class Index, bool kBySign>
__global__ void __launch_bounds__(kThreads)
    bias_leaky_relu_kernel(const T* __restrict__ x,     // [B, C, inner]
                           const T* __restrict__ bias,  // [C] or null
                           const T* __restrict__ sign,  // [B, C, inner], only with kBySign
                           T* __restrict__ y,           // [B, C, inner]
                           Index vectors, Index channels, Index inner, float slope, float gain) {
  constexpr int kVectors = kVectorsAThread<Index>;
  const Index first = static_cast<Index>(blockIdx.x) * (kThreads * kVectors) + threadIdx.x;
  Vector<T, N> in[kVectors], signs[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; k++) {
    const Index i = first + k * kThreads;
    if (i < vectors) {
      in[k] = reinterpret_cast<const Vector<T, N>*>(x)[i];
      if (kBySign) signs[k] = reinterpret_cast<const Vector<T, N>*>(sign)[i];
    }
  }
#pragma unroll
  for (int k = 0; k < kVectors; k++) {
    const Index i = first + k * kThreads;
    if (i >= vectors) continue;
    // N divides inner: all elements of a vector have one channel.
    const float b = bias == nullptr ? 0.0f : to_float(bias[i * N / inner % channels]);
    Vector<T, N> out;
#pragma unroll
    for (int e = 0; e < N; e++) {
      const float z = to_float(in[k].value[e]) + b;
      const float decides = kBySign ? to_float(signs[k].value[e]) : z;
      out.value[e] = from_float<T>(z * (decides > 0.0f ? gain : gain * slope));
    }
    reinterpret_cast<Vector<T, N>*>(y)[i] = out;
  }
}

// dx = gain * slope(y) * dy, and partial[part, c] = the sum of dx over one part of channel c.
// A block has one channel and `part_vectors` of its B * inner / N vectors.
template <class T, int N, class Index>
__global__ void __launch_bounds__(kPartThreads)
    bias_leaky_relu_backward_kernel(const T* __restrict__ dy,     // [B, C, inner]
                                    const T* __restrict__ y,      // [B, C, inner], whose sign decides
                                    T* __restrict__ dx,           // [B, C, inner]
                                    float* __restrict__ partial,  // [parts, C] or null
                                    Index channel_vectors,        // B * inner / N
                                    Index part_vectors, Index channels, Index inner_vectors, float slope, float gain) {
  const Index channel = blockIdx.x % channels, part = blockIdx.x / channels;
  const Index end = min(channel_vectors, (part + 1) * part_vectors);
  float sum = 0.0f;
  for (Index j = part * part_vectors + threadIdx.x; j < end; j += kPartThreads) {
    const Index image = j / inner_vectors;
    const Index i = (image * channels + channel) * inner_vectors + (j - image * inner_vectors);
    const Vector<T, N> gradient = reinterpret_cast<const Vector<T, N>*>(dy)[i];
    const Vector<T, N> output = reinterpret_cast<const Vector<T, N>*>(y)[i];
    Vector<T, N> out;
#pragma unroll
    for (int e = 0; e < N; e++) {
      const float d = to_float(gradient.value[e]) * (to_float(output.value[e]) > 0.0f ? gain : gain * slope);
      sum += d;
      out.value[e] = from_float<T>(d);
    }
    reinterpret_cast<Vector<T, N>*>(dx)[i] = out;
  }
  if (partial == nullptr) return;
  __shared__ float warp_sums[kPartThreads / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kPartThreads / 32; w++) total += warp_sums[w];
    partial[part * channels + channel] = total;
  }
}

// db[c] = sum over parts of partial[part, c], in index order: the same result every time.
template <class T>
__global__ void __launch_bounds__(kThreads) add_bias_parts_kernel(const float* __restrict__ partial,  // [parts, C]
                                                                  T* __restrict__ db,                 // [C]
                                                                  int parts, int channels) {
  const int channel = blockIdx.x * kThreads + threadIdx.x;
  if (channel >= channels) return;
  float sum = 0.0f;
  for (int part = 0; part < parts; part++) sum += partial[static_cast<int64_t>(part) * channels + channel];
  db[channel] = from_float<T>(sum);
}

// 32-bit indices where they suffice (with room for the last block to overshoot), else 64-bit.
template <class F>
void for_index(int64_t elements, F f) {
  if (elements < (int64_t{1} << 31))
    f(uint32_t{});
  else
    f(uint64_t{});
}

}  // namespace

void bias_leaky_relu(cudaStream_t stream, int dtype, Pointer x, Pointer bias, Pointer sign, Pointer y, int64_t batch,
                     int64_t channels, int64_t inner, double slope, double gain) {
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const T *x_ = input<T>(x), *bias_ = input<T>(bias), *sign_ = input<T>(sign);
    T* y_ = output<T>(y);
    for_widest_vector<T>(inner, {x_, sign_, y_}, [&](auto width) {
      constexpr int N = decltype(width)::value;
      const int64_t vectors = batch * channels * inner / N;
      for_index(batch * channels * inner, [&](auto index) {
        using Index = decltype(index);
        const auto kernel =
            sign_ ? bias_leaky_relu_kernel<T, N, Index, true> : bias_leaky_relu_kernel<T, N, Index, false>;
        const dim3 grid(blocks_for(vectors, kThreads * kVectorsAThread<Index>));
        launch(kernel, grid, kThreads, 0, stream, x_, bias_, sign_, y_, vectors, channels, inner, slope, gain);
      });
    });
  });
}

int64_t bias_leaky_relu_parts(int64_t batch, int64_t channels, int64_t inner) {
  // Parts of 16 k elements: 16 vectors of fp32 a thread. Fewer where that would leave most of the chip idle.
  constexpr int64_t kPartElements = 16384, kFewestElements = 2048, kBlocksWanted = 1024;
  const int64_t elements = batch * inner;
  const int64_t parts = std::max(ceil_div(elements, kPartElements), ceil_div(kBlocksWanted, channels));
  return std::max<int64_t>(1, std::min(parts, ceil_div(elements, kFewestElements)));
}

void bias_leaky_relu_backward(cudaStream_t stream, int dtype, Pointer dy, Pointer y, Pointer dx, Pointer partial,
                              Pointer db, int64_t batch, int64_t channels, int64_t inner, int64_t parts, double slope,
                              double gain) {
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const T *dy_ = input<T>(dy), *y_ = input<T>(y);
    T *dx_ = output<T>(dx), *db_ = output<T>(db);
    float* partial_ = output<float>(partial);
    for_widest_vector<T>(inner, {dy_, y_, dx_}, [&](auto width) {
      constexpr int N = decltype(width)::value;
      const int64_t channel_vectors = batch * inner / N, part_vectors = ceil_div(channel_vectors, parts);
      for_index(batch * channels * inner, [&](auto index) {
        const dim3 grid(blocks_for(parts * channels, 1));
        launch(bias_leaky_relu_backward_kernel<T, N, decltype(index)>, grid, kPartThreads, 0, stream, dy_, y_, dx_,
               partial_, channel_vectors, part_vectors, channels, inner / N, slope, gain);
      });
    });
    if (partial_ != nullptr)
      launch(add_bias_parts_kernel<T>, dim3(blocks_for(channels, kThreads)), kThreads, 0, stream, partial_, db_, parts,
             channels);
  });
}

}  // namespace cips3d

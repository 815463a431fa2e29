// What the gradients of a sine layer's parameters are made of: for each image G = slope^T x and s = the sum of the
// slope over all samples (weight_gradient.h). Then dshift = s, db = gain s, dW = gain G and dgain = rowsum(W G) + b s,
// summed over images where the parameters are shared.
#include "sine_layer.h"
#include "weight_gradient.h"

namespace cips3d {

int64_t film_siren_weight_gradient_parts(int64_t batch, int64_t rows, int in, int out) {
  return weight_gradient_parts(batch, rows, in, out);
}

void film_siren_weight_gradient(cudaStream_t stream, int dtype, int x_dtype, Pointer slope, Pointer x, Pointer partial,
                                Pointer partial_sum, int64_t batch, int64_t rows, int in, int out, int64_t parts) {
  const auto launch_for = [&](auto operand, auto slopes, auto inputs) {
    launch_weight_gradient<decltype(operand), decltype(slopes), decltype(inputs)>(
        stream, slope, x, 0, 0, partial, partial_sum, batch, rows, in, out, parts);
  };
  const DType of_slope = static_cast<DType>(dtype), of_x = static_cast<DType>(x_dtype);
  if (of_slope == DType::kBFloat16) {
    switch (of_x) {
      case DType::kFloat32: return launch_for(bfloat16{}, bfloat16{}, float{});
      case DType::kFloat16: return launch_for(bfloat16{}, bfloat16{}, half{});
      case DType::kBFloat16: return launch_for(bfloat16{}, bfloat16{}, bfloat16{});
    }
  }
  if (of_slope == DType::kFloat32 && of_x == DType::kFloat32) return launch_for(bfloat16{}, float{}, float{});
  if (of_slope == DType::kFloat16 && of_x == DType::kFloat16) return launch_for(half{}, half{}, half{});
  throw std::invalid_argument("x and the slope are of types that do not go together");
}

}  // namespace cips3d

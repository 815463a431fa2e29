// What the gradients of a sine layer's parameters are made of: for each image G = slope^T x and s = the sum of the
// slope over all samples (weight_gradient.h). Then dshift = s, db = gain s, dW = gain G and dgain = rowsum(W G) + b s,
// summed over images where the parameters are shared.
#include "sine_layer.h"
#include "weight_gradient.h"

namespace cips3d {

int64_t film_siren_weight_gradient_parts(int64_t batch, int64_t rows, int in, int out) {
  return weight_gradient_parts(batch, rows, in, out);
}

void film_siren_weight_gradient(cudaStream_t stream, int dtype, int x_dtype, bool fast, Pointer slope, Pointer x,
                                Pointer partial, Pointer partial_sum, int64_t batch, int64_t rows, int in, int out,
                                int64_t parts) {
  const auto launch_for = [&](auto operand, auto slopes, auto inputs) {
    launch_weight_gradient<decltype(operand), decltype(slopes), decltype(inputs)>(
        stream, slope, x, 0, 0, partial, partial_sum, batch, rows, in, out, parts);
  };
  switch (gradient_types(dtype, x_dtype)) {
    case GradientTypes::kFloat32:
      if (fast) return launch_for(bfloat16{}, bfloat16{}, float{});
      return launch_for(bfloat16{}, float{}, float{});
    case GradientTypes::kFloat16: return launch_for(half{}, half{}, half{});
    case GradientTypes::kBFloat16: return launch_for(bfloat16{}, bfloat16{}, bfloat16{});
    case GradientTypes::kMixed: return launch_for(bfloat16{}, bfloat16{}, half{});
  }
}

}  // namespace cips3d

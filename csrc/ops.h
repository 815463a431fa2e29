// The launchers that bindings.cpp exports. Every one enqueues its kernels on `stream` of the current device and
// returns; nothing here allocates or synchronises. Pointers are addresses in the device's memory, 0 for an argument
// left out. Shapes are row-major; sizes are checked in Python.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "numeric.h"

namespace cips3d {

using Pointer = uintptr_t;

template <class T>
const T* input(Pointer pointer) {
  return reinterpret_cast<const T*>(pointer);
}
template <class T>
T* output(Pointer pointer) {
  return reinterpret_cast<T*>(pointer);
}

// Blocks that cover `work` items; throws where a grid cannot be that large.
inline unsigned blocks_for(int64_t work, int64_t items_a_block) {
  const int64_t blocks = ceil_div(work, items_a_block);
  if (blocks > std::numeric_limits<int>::max()) throw std::invalid_argument("too many elements for one launch");
  return static_cast<unsigned>(blocks);
}

// bias_leaky_relu.cu: x, sign, y [batch, channels, inner]; bias [channels].
void bias_leaky_relu(cudaStream_t stream, int dtype, Pointer x, Pointer bias, Pointer sign, Pointer y, int64_t batch,
                     int64_t channels, int64_t inner, double slope, double gain);
int64_t bias_leaky_relu_parts(int64_t batch, int64_t channels, int64_t inner);
void bias_leaky_relu_backward(cudaStream_t stream, int dtype, Pointer dy, Pointer y, Pointer dx, Pointer partial,
                              Pointer db, int64_t batch, int64_t channels, int64_t inner, int64_t parts, double slope,
                              double gain);

}  // namespace cips3d

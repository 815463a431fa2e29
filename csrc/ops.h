// The launchers that bindings.cpp exports. Every one enqueues its kernels on `stream` of the current device and
// returns; nothing here allocates or synchronises. Pointers are addresses in the device's memory, 0 for an argument
// left out. Shapes are row-major; sizes are checked in Python.
#pragma once
#include <algorithm>
#include <limits>

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

// device_limits.cu: of the device; throws where no code of this module starts on it.
int multiprocessors();
int64_t shared_memory();  // bytes that a block may have
// For tests: launchers cut their work as if every device had that many multiprocessors; 0: as many as it has. With few
// of them, every block of a small test goes through its loops as often as blocks do on large tensors.
void pretend_multiprocessors(int count);
// For tests: as if no device had more shared memory for a block; 0: as it is. Kernels of smaller devices run so.
void pretend_shared_memory(int64_t bytes);

// bias_leaky_relu.cu: x, sign, y [batch, channels, inner]; bias [channels].
void bias_leaky_relu(cudaStream_t stream, int dtype, Pointer x, Pointer bias, Pointer sign, Pointer y, int64_t batch,
                     int64_t channels, int64_t inner, double slope, double gain);
int64_t bias_leaky_relu_parts(int64_t batch, int64_t channels, int64_t inner);
void bias_leaky_relu_backward(cudaStream_t stream, int dtype, Pointer dy, Pointer y, Pointer dx, Pointer partial,
                              Pointer db, int64_t batch, int64_t channels, int64_t inner, int64_t parts, double slope,
                              double gain);

// accumulate.cu: weights [rays, samples] float32; values [rays, samples, channels] and sums [rays, channels] of dtype.
void accumulate(cudaStream_t stream, int dtype, Pointer weights, Pointer values, Pointer sums, int64_t rays,
                int64_t samples, int64_t channels);
void accumulate_backward(cudaStream_t stream, int dtype, Pointer grad, Pointer weights, Pointer values,
                         Pointer grad_weights, Pointer grad_values, int64_t rays, int64_t samples, int64_t channels);

// composite.cu: S = coarse rows as evaluated, then N - S fine ones; N = samples front to back, at order[i] [rays, N].
// density [rays, S], fine_density [rays, N - S], depths, noise and weights [rays, N], depth, transmittance and opacity
// [rays] are float32; features [rays, S, channels], fine_features [rays, N - S, channels] and sums [rays, channels] of
// dtype. Gradients out_* have the shape of what they belong to. workspace [2, rays, N] float32 where N > 32.
void composite(cudaStream_t stream, int dtype, Pointer density, Pointer fine_density, Pointer depths, Pointer order,
               Pointer noise, Pointer features, Pointer fine_features, Pointer sums, Pointer depth, Pointer weights,
               Pointer transmittance, Pointer opacity, int64_t rays, int64_t coarse, int64_t samples, int64_t channels,
               bool softplus, bool last_back, bool white_back);
void composite_backward(cudaStream_t stream, int dtype, Pointer density, Pointer fine_density, Pointer depths,
                        Pointer order, Pointer noise, Pointer features, Pointer fine_features, Pointer grad_sums,
                        Pointer grad_depth, Pointer grad_weights, Pointer grad_transmittance, Pointer grad_opacity,
                        Pointer out_density, Pointer out_fine_density, Pointer out_depths, Pointer out_features,
                        Pointer out_fine_features, Pointer workspace, int64_t rays, int64_t coarse, int64_t samples,
                        int64_t channels, bool softplus, bool last_back, bool white_back);

// film_siren.cu: a sine layer. x [batch, rows, in], y [batch, rows, out]; weight [batch or 1, out, in], bias [batch or
// 1, out], gain and shift [batch, out] or null, all float32; `shared`: one weight and bias. workspace: as many bytes as
// film_siren_workspace says. fast: products of 16-bit numbers.
int64_t film_siren_workspace(int64_t batch, int in, int out, bool shared);
void film_siren(cudaStream_t stream, int dtype, bool fast, Pointer x, Pointer weight, Pointer bias, Pointer gain,
                Pointer shift, Pointer workspace, Pointer y, int64_t batch, int64_t rows, int in, int out, bool shared);

// film_siren_backward.cu: dy, slope [batch, rows, out], x, dx [batch, rows, in]; of dtype, but slope bfloat16 where
// dtype is float32 and fast. The workspace is one for both.
int64_t film_siren_backward_workspace(int64_t batch, int in, int out, bool shared);
void film_siren_slope(cudaStream_t stream, int dtype, bool fast, Pointer x, Pointer dy, Pointer weight, Pointer bias,
                      Pointer gain, Pointer shift, Pointer workspace, Pointer slope, int64_t batch, int64_t rows,
                      int in, int out, bool shared);
void film_siren_input_gradient(cudaStream_t stream, int dtype, bool fast, Pointer slope, Pointer weight, Pointer gain,
                               Pointer workspace, Pointer dx, int64_t batch, int64_t rows, int in, int out,
                               bool shared);

// film_siren_weight_gradient.cu: partial [parts, batch, out, in] and partial_sum [parts, batch, out] float32. slope and
// x of one dtype, or slope bfloat16 and x any.
int64_t film_siren_weight_gradient_parts(int64_t batch, int64_t rows, int in, int out);
void film_siren_weight_gradient(cudaStream_t stream, int dtype, int x_dtype, Pointer slope, Pointer x, Pointer partial,
                                Pointer partial_sum, int64_t batch, int64_t rows, int in, int out, int64_t parts);

// split_matmul.cu: all float32. packed: as many bytes as split_matmul_packed_bytes says, W whose element (k, n) is at
// k depth_stride + n column_stride. x [rows, depth], y [rows, columns]; largest: magnitude in x, on the device.
// How W is packed depends on CIPS3D_WGMMA and on shared memory, which have to be the same when it is multiplied.
bool split_matmul_warpgroups(int columns);  // whether warpgroups multiply (9.0)
int64_t split_matmul_packed_bytes(int columns, int depth);
void split_matmul_pack(cudaStream_t stream, Pointer weight, Pointer packed, int columns, int depth,
                       int64_t column_stride, int64_t depth_stride);
void split_matmul(cudaStream_t stream, Pointer x, Pointer largest, Pointer packed, Pointer y, int64_t rows, int columns,
                  int depth);
// partial [parts, x columns, y columns], to be added up.
bool split_matmul_over_rows_warpgroups(int x_columns, int y_columns);
int64_t split_matmul_over_rows_parts(int64_t rows, int x_columns, int y_columns);
void split_matmul_over_rows(cudaStream_t stream, Pointer x, Pointer y, Pointer x_largest, Pointer y_largest,
                            Pointer partial, int64_t rows, int x_columns, int y_columns, int64_t parts);

// film_siren_points.cu: film_siren and its gradients for in <= 8. y and dy of dtype; x, dx [tiles, batch, rows, in] or
// null, and partial and partial_sum as above or both null, float32.
int64_t film_siren_points_tiles(int out);
int64_t film_siren_points_parts(int64_t batch, int64_t rows, int out);
void film_siren_points(cudaStream_t stream, int dtype, Pointer x, Pointer weight, Pointer bias, Pointer gain,
                       Pointer shift, Pointer y, int64_t batch, int64_t rows, int in, int out, bool shared);
void film_siren_points_backward(cudaStream_t stream, int dtype, Pointer x, Pointer dy, Pointer weight, Pointer bias,
                                Pointer gain, Pointer shift, Pointer dx, Pointer partial, Pointer partial_sum,
                                int64_t batch, int64_t rows, int in, int out, int64_t parts, bool shared);

// modulated_epilogue.cu: product, skip, y, modulated [batch, pixels, channels] of dtype; demodulation, next_modulation
// [batch, channels], rgb_weight [3, channels], rgb and rgb_sum [batch, pixels, 3] float32. Gradients have the shape of
// what they belong to; partial [batch, parts, 5, channels] float32 where one of the three summed gradients is asked
// for. largest: a float32 number, not negative, that is raised to the largest magnitude in `modulated` or grad_product
// of float32, or null.
void modulated_epilogue(cudaStream_t stream, int dtype, Pointer product, Pointer demodulation, Pointer skip,
                        Pointer next_modulation, Pointer rgb_weight, Pointer rgb, Pointer y, Pointer modulated,
                        Pointer rgb_sum, Pointer largest, int64_t batch, int64_t pixels, int channels, double slope);
int64_t modulated_epilogue_parts(int64_t batch, int64_t pixels, int channels);
void modulated_epilogue_backward(cudaStream_t stream, int dtype, Pointer product, Pointer demodulation, Pointer skip,
                                 Pointer next_modulation, Pointer rgb_weight, Pointer grad_output,
                                 Pointer grad_modulated, Pointer grad_rgb, Pointer grad_product,
                                 Pointer grad_demodulation, Pointer grad_skip, Pointer grad_next_modulation,
                                 Pointer grad_rgb_weight, Pointer partial, Pointer largest, int64_t batch,
                                 int64_t pixels, int channels, int64_t parts, double slope);

// modulated_inr.cu: features [images, pixels, channels] to rgb [images, pixels, 3] through `layers` modulated layers,
// whose tensors are listed there; `workspace`: as many bytes as modulated_inr_workspace says for the current device.
// How many pixels a block takes through the layers at a time; 0 where shared memory has no room.
int modulated_inr_rows(int64_t images, int64_t pixels, int width, bool accurate);
// Whether it is the kernel for warpgroups, which the environment variable CIPS3D_WGMMA=0 refuses.
bool modulated_inr_warpgroups(int64_t images, int64_t pixels, int width, bool accurate);
// How many blocks share the weights that they read, as a cluster; without "clusters" in CIPS3D_WGMMA it is 1.
int modulated_inr_cluster(int64_t images, int64_t pixels, int width, bool accurate);
int64_t modulated_inr_workspace(int64_t images, int64_t pixels, int channels, int width, int layers, int colors,
                                bool accurate);
void modulated_inr(cudaStream_t stream, Pointer features, Pointer first_weight, Pointer hidden_weight,
                   Pointer first_modulation, Pointer hidden_modulation, Pointer demodulation, Pointer rgb_weight,
                   Pointer workspace, Pointer rgb, int64_t images, int64_t pixels, int channels, int width, int layers,
                   int skip_from, int rgb_from, double slope, bool accurate);

// upfirdn2d.cu: x [planes, height, width]; y [planes, out_height, out_width]; taps float32, turned round where !flip.
// Along both axes the same 4 taps and factors (1, 1), (2, 1) or (1, 2); an even number of 16-bit elements.
void upfirdn2d_four_taps(cudaStream_t stream, int dtype, Pointer x, Pointer taps, Pointer y, int64_t planes,
                         int64_t width, int64_t height, int64_t out_width, int64_t out_height, int64_t up, int64_t down,
                         int64_t pad_x, int64_t pad_y, bool flip);
// taps [taps_y, taps_x]; equal dtypes, or one of them float32.
void upfirdn2d_filter(cudaStream_t stream, int in_dtype, int out_dtype, Pointer x, Pointer taps, Pointer y,
                      int64_t planes, int64_t width, int64_t out_width, int64_t taps_x, int64_t up_x, int64_t down_x,
                      int64_t pad_x, int64_t height, int64_t out_height, int64_t taps_y, int64_t up_y, int64_t down_y,
                      int64_t pad_y, bool flip);

// importance.cu: depths and weights [rays, S], u and fine [rays, F], merged and order [rays, S + F]; order is int64.
void importance(cudaStream_t stream, Pointer depths, Pointer weights, Pointer u, Pointer fine, Pointer merged,
                Pointer order, int64_t rays, int64_t coarse_count, int64_t fine_count);

// stratified.cu: depths [images, rays, samples] from u of the same shape, or given where u is 0; with them points
// [images, rays, samples, 3] from directions [images, rays, 3] and origins of that shape or, shared, [images, 3].
void stratified_points(cudaStream_t stream, Pointer u, Pointer origins, Pointer directions, Pointer depths,
                       Pointer points, int64_t images, int64_t rays, int64_t samples, bool shared_origin, double t_near,
                       double t_far);
void ray_points_backward(cudaStream_t stream, Pointer grad, Pointer directions, Pointer depths, Pointer grad_origins,
                         Pointer grad_directions, Pointer grad_depths, int64_t rays, int64_t samples);

// render_rays.cu: origins, directions [images, rays, 3]; draws [images, rays, coarse or fine]; folded layers of `width`
// and `color` channels; outputs [images, rays, ...].
bool render_rays_fits(int coarse, int fine, bool accurate);        // into the current device's shared memory
bool render_rays_warpgroups(int coarse, int fine, bool accurate);  // whether warpgroups do it there
void render_rays(cudaStream_t stream, Pointer origins, Pointer directions, Pointer stratified, Pointer importance,
                 Pointer coarse_noise, Pointer merged_noise, Pointer first_weight, Pointer first_bias,
                 Pointer second_weight, Pointer second_bias, Pointer density_weight, Pointer density_bias,
                 Pointer color_weight, Pointer color_bias, Pointer colors, Pointer weight_sum, Pointer depth,
                 Pointer weights, Pointer depths, Pointer transmittance, int64_t images, int64_t rays, int coarse,
                 int fine, int width, int color, double ball_density, double ball_radius, double near, double far,
                 bool softplus, bool last_back, bool accurate);

// render_wide_rays.cu: the same for wider layers; `workspace`: as many bytes as render_wide_rays_workspace says.
bool render_wide_rays_fits(int coarse, int fine, int width, int color,
                           bool accurate);  // into the current device's shared memory
// Whether warpgroups do it, as for the others below (9.0).
bool render_wide_rays_warpgroups(int coarse, int fine, int width, int color, bool accurate);
int64_t render_wide_rays_workspace(int64_t images, int width, int color, bool accurate);
void render_wide_rays(cudaStream_t stream, Pointer origins, Pointer directions, Pointer stratified, Pointer importance,
                      Pointer coarse_noise, Pointer merged_noise, Pointer first_weight, Pointer first_bias,
                      Pointer second_weight, Pointer second_bias, Pointer density_weight, Pointer density_bias,
                      Pointer color_weight, Pointer color_bias, Pointer workspace, Pointer colors, Pointer weight_sum,
                      Pointer depth, Pointer weights, Pointer depths, Pointer transmittance, int64_t images,
                      int64_t rays, int coarse, int fine, int width, int color, double ball_density, double ball_radius,
                      double near, double far, bool softplus, bool last_back, bool accurate);

// render_deep_rays.cu: the same for a deep field, whose tensors are listed there; `workspace`: as many bytes as
// render_deep_rays_workspace says.
bool render_deep_rays_warpgroups(int coarse, int fine, int depth, int width, int color, bool accurate);
int64_t render_deep_rays_workspace(int64_t images, int depth, int width, int color, bool accurate);
void render_deep_rays(cudaStream_t stream, Pointer origins, Pointer directions, Pointer stratified, Pointer importance,
                      Pointer coarse_noise, Pointer merged_noise, Pointer first_weight, Pointer hidden_weight,
                      Pointer trunk_bias, Pointer trunk_gain, Pointer trunk_shift, Pointer density_weight,
                      Pointer density_bias, Pointer color_weight, Pointer color_bias, Pointer color_gain,
                      Pointer color_shift, Pointer head_weight, Pointer head_bias, Pointer workspace, Pointer colors,
                      Pointer weight_sum, Pointer depth_sum, Pointer weights, Pointer depths, int64_t images,
                      int64_t rays, int coarse, int fine, int depth, int width, int color, double near, double far,
                      bool softplus, bool last_back, bool accurate);

// field_samples.cu: a streamed field at the samples of rays, depths [images, rays, samples], and its gradients. The
// field's tensors are listed in pack_field.h, those that are kept in recorded_samples.h; of_density and of_colors in
// streamed_gradients.h. slopes and color_slopes hold cosines between the two calls; behind them the gradients of
// phases: float32 if accurate, else bfloat16 with a head, else float16 times `scales` [2] (GradientScale; null: 1).
bool field_samples_warpgroups(int depth, int width, int color, bool head, bool accurate);
bool field_samples_backward_warpgroups(int depth, int width, int color, bool head, bool accurate);
int64_t field_samples_workspace(int64_t images, int depth, int width, int color, bool head, bool accurate);
void field_samples(cudaStream_t stream, Pointer origins, Pointer directions, Pointer depths, Pointer first_weight,
                   Pointer first_bias, Pointer hidden_weight, Pointer hidden_bias, Pointer trunk_gain,
                   Pointer trunk_shift, Pointer density_weight, Pointer density_bias, Pointer color_weight,
                   Pointer color_bias, Pointer color_gain, Pointer color_shift, Pointer head_weight, Pointer head_bias,
                   Pointer workspace, Pointer inputs, Pointer slopes, Pointer color_slopes, Pointer activations,
                   Pointer density, Pointer colors, int64_t images, int64_t rays, int samples, int depth, int width,
                   int color, double ball_density, double ball_radius, bool accurate);
int64_t field_samples_backward_workspace(int64_t images, int depth, int width, int color, bool head, bool accurate);
void field_samples_backward(cudaStream_t stream, Pointer of_density, Pointer of_colors, Pointer hidden_weight,
                            Pointer trunk_gain, Pointer density_weight, Pointer color_weight, Pointer color_gain,
                            Pointer head_weight, Pointer scales, Pointer workspace, Pointer slopes,
                            Pointer color_slopes, int64_t images, int64_t samples, int depth, int width, int color,
                            bool accurate);

// render_rays_backward.cu: gradients from what the forward left; partial [images, blocks, block_floats], sums [images,
// gradient_size], scales [2] (GradientScale).
int64_t render_rays_gradient_size(int width, int color);
int64_t render_rays_block_floats();
bool render_rays_backward_fits(bool accurate);                      // into the current device's shared memory
bool render_rays_backward_warpgroups(bool accurate, bool of_rays);  // whether warpgroups do it
bool render_rays_backward_has_warpgroups();                         // whether the compiler can be trusted with them
void render_rays_backward(cudaStream_t stream, Pointer origins, Pointer directions, Pointer depths,
                          Pointer transmittance, Pointer weights, Pointer noise, Pointer grad_colors,
                          Pointer grad_weight_sum, Pointer grad_depth, Pointer grad_weights, Pointer scales,
                          Pointer first_weight, Pointer first_bias, Pointer second_weight, Pointer second_bias,
                          Pointer density_weight, Pointer density_bias, Pointer color_weight, Pointer color_bias,
                          Pointer partial, Pointer sums, Pointer grad_origins, Pointer grad_directions, int64_t images,
                          int64_t rays, int samples, int width, int color, double ball_density, double ball_radius,
                          int64_t blocks, bool softplus, bool last_back, bool accurate);

}  // namespace cips3d

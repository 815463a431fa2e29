// The Python module: one line a launcher. It knows nothing of torch; cips3d/ops/kernels.py hands it addresses.
#include <pybind11/pybind11.h>
#if defined(CIPS3D_PTX)
#include <pybind11/stl.h>
#endif

#include "ops.h"

#ifndef CIPS3D_MODULE
#define CIPS3D_MODULE _cuda
#endif
#ifndef CIPS3D_ARCHITECTURES
#define CIPS3D_ARCHITECTURES ""
#endif
#ifndef CIPS3D_SOURCES
#define CIPS3D_SOURCES ""
#endif

namespace py = pybind11;

namespace cips3d {
namespace {

// Makes a device current, and the one before it again at the end.
class DeviceGuard {
#if defined(CIPS3D_EMULATED)
 public:
  explicit DeviceGuard(int) {}
#else
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_));
    if (device != before_) check(cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_ && cudaSetDevice(before_) != cudaSuccess)
      (void)cudaGetLastError();  // a destructor cannot report; the next call will
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
#endif
};

// A launch waits where the device's queue is full: other threads of the process go on meanwhile.
#if defined(CIPS3D_EMULATED)
struct WithoutLock {
  WithoutLock() {}  // the emulation has one launch at a time
};
#else
using WithoutLock = py::gil_scoped_release;
#endif

template <class...>
struct Types {};

// Binds call(arguments...). They are converted one by one, out of the tuple in which Python brings them: what pybind11
// makes of so many signatures of up to 50 arguments takes most of this file's time to compile.
template <class... Arguments, size_t... i, class Call>
void define(py::module_& module, const char* name, Types<Arguments...>, std::index_sequence<i...>, Call call) {
  module.def(name, [name, call](const py::args& given) {
    if (given.size() != sizeof...(i))
      throw py::type_error(name + (" takes " + std::to_string(sizeof...(i))) + " arguments, got " +
                           std::to_string(given.size()));
    return call(given[i].template cast<Arguments>()...);
  });
}

// Binds a launcher as name(device, stream, ...).
template <class... Arguments>
void bind(py::module_& module, const char* name, void (*launcher)(cudaStream_t, Arguments...)) {
  const auto call = [launcher](int device, uintptr_t stream, Arguments... arguments) {
    const WithoutLock others_go_on;
    const DeviceGuard guard(device);
    launcher(reinterpret_cast<cudaStream_t>(stream), arguments...);
  };
  using All = Types<int, uintptr_t, Arguments...>;
  define(module, name, All(), std::make_index_sequence<2 + sizeof...(Arguments)>(), call);
}

// Binds a question about a device as name(device, ...).
template <class Result, class... Arguments>
void bind_query(py::module_& module, const char* name, Result (*query)(Arguments...)) {
  const auto call = [query](int device, Arguments... arguments) {
    const WithoutLock others_go_on;
    const DeviceGuard guard(device);
    return query(arguments...);
  };
  define(module, name, Types<int, Arguments...>(), std::make_index_sequence<1 + sizeof...(Arguments)>(), call);
}

}  // namespace
}  // namespace cips3d

PYBIND11_MODULE(CIPS3D_MODULE, module) {
  using namespace cips3d;
  module.attr("architectures") = CIPS3D_ARCHITECTURES;
  module.attr("sources") = CIPS3D_SOURCES;  // of which it is made, as cips3d/ops/kernel_sources.py has it
  bind_query(module, "multiprocessors", multiprocessors);
  bind_query(module, "shared_memory", shared_memory);
  module.def("pretend_multiprocessors", pretend_multiprocessors);
  module.def("pretend_shared_memory", pretend_shared_memory);
  bind(module, "bias_leaky_relu", bias_leaky_relu);
  bind(module, "bias_leaky_relu_backward", bias_leaky_relu_backward);
  module.def("bias_leaky_relu_parts", bias_leaky_relu_parts);
  bind(module, "modulated_epilogue", modulated_epilogue);
  bind(module, "modulated_epilogue_backward", modulated_epilogue_backward);
  module.def("modulated_epilogue_parts", modulated_epilogue_parts);
  bind(module, "modulated_inr", modulated_inr);
  bind_query(module, "modulated_inr_rows", modulated_inr_rows);
  bind_query(module, "modulated_inr_warpgroups", modulated_inr_warpgroups);
  bind_query(module, "modulated_inr_cluster", modulated_inr_cluster);
  bind_query(module, "modulated_inr_workspace", modulated_inr_workspace);
  bind(module, "upfirdn2d_four_taps", upfirdn2d_four_taps);
  bind(module, "upfirdn2d_filter", upfirdn2d_filter);
  bind(module, "accumulate", accumulate);
  bind(module, "accumulate_backward", accumulate_backward);
  bind(module, "composite", composite);
  bind(module, "composite_backward", composite_backward);
  bind(module, "importance", importance);
  bind(module, "stratified_points", stratified_points);
  bind(module, "ray_points_backward", ray_points_backward);
  bind(module, "film_siren", film_siren);
  module.def("film_siren_workspace", film_siren_workspace);
  bind(module, "film_siren_slope", film_siren_slope);
  bind(module, "film_siren_input_gradient", film_siren_input_gradient);
  module.def("film_siren_backward_workspace", film_siren_backward_workspace);
  bind(module, "film_siren_weight_gradient", film_siren_weight_gradient);
  bind_query(module, "film_siren_weight_gradient_parts", film_siren_weight_gradient_parts);
  bind(module, "film_siren_points", film_siren_points);
  bind(module, "film_siren_points_backward", film_siren_points_backward);
  module.def("film_siren_points_tiles", film_siren_points_tiles);
  bind_query(module, "film_siren_points_parts", film_siren_points_parts);
  bind(module, "split_matmul", split_matmul);
  bind(module, "split_matmul_pack", split_matmul_pack);
  module.def("split_matmul_packed_bytes", split_matmul_packed_bytes);
  bind_query(module, "split_matmul_warpgroups", split_matmul_warpgroups);
  bind(module, "split_matmul_over_rows", split_matmul_over_rows);
  bind_query(module, "split_matmul_over_rows_parts", split_matmul_over_rows_parts);
  bind_query(module, "split_matmul_over_rows_warpgroups", split_matmul_over_rows_warpgroups);
  bind(module, "render_rays", render_rays);
  bind(module, "render_rays_backward", render_rays_backward);
  bind_query(module, "render_rays_fits", render_rays_fits);
  bind_query(module, "render_rays_warpgroups", render_rays_warpgroups);
  bind_query(module, "render_rays_backward_fits", render_rays_backward_fits);
  bind_query(module, "render_rays_backward_warpgroups", render_rays_backward_warpgroups);
  module.def("render_rays_backward_has_warpgroups", render_rays_backward_has_warpgroups);
  module.def("render_rays_gradient_size", render_rays_gradient_size);
  module.def("render_rays_block_floats", render_rays_block_floats);
  bind(module, "render_wide_rays", render_wide_rays);
  bind_query(module, "render_wide_rays_fits", render_wide_rays_fits);
  bind_query(module, "render_wide_rays_warpgroups", render_wide_rays_warpgroups);
  module.def("render_wide_rays_workspace", render_wide_rays_workspace);
  bind(module, "render_deep_rays", render_deep_rays);
  bind_query(module, "render_deep_rays_warpgroups", render_deep_rays_warpgroups);
  module.def("render_deep_rays_workspace", render_deep_rays_workspace);
  bind(module, "field_samples", field_samples);
  bind(module, "field_samples_backward", field_samples_backward);
  bind_query(module, "field_samples_warpgroups", field_samples_warpgroups);
  bind_query(module, "field_samples_backward_warpgroups", field_samples_backward_warpgroups);
  module.def("field_samples_workspace", field_samples_workspace);
  module.def("field_samples_backward_workspace", field_samples_backward_workspace);
#if defined(CIPS3D_EMULATED)
  module.def("set_schedule", emulation::set_schedule);
  module.def("set_shared_limit", emulation::set_shared_limit);
  module.def("shared_limit", emulation::shared_limit);
#endif
#if defined(CIPS3D_PTX)
  module.def("load_ptx", ptx::load);
  module.def("count_ptx", ptx::count);
  module.def("counted_ptx", ptx::counted);
#endif
}

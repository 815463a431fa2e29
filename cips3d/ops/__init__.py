"""Operations that kernels accelerate, each with its plain PyTorch reference, and what they share.

On CUDA devices kernels compute; elsewhere, for dtypes that they do not know, and inside `kernels.disabled()`, plain
PyTorch does. Gradients are `torch.autograd`'s, of any order. An output has no gradient with respect to another output
of the same call. Infinite numbers and NaN may reach other results in kernels than in plain PyTorch.

- `torch.compile` takes every op in one graph, with sizes that change.
- Forward-mode differentiation and `torch.func` are not for kernels, nor in plain PyTorch for `accumulate`, `composite`
  and what it is made of, `march_rays`, `render_rays`, `split_matmul`, and `film_siren` in 16 bits or under autocast:
  these raise, but for `vmap` of the last two, which is a loop that PyTorch warns of. The others have them there, and
  `vmap` too, but over `skip` alone.
- Under autocast the layers `film_siren`, `modulated_fc` and `modulated_inr` compute in its dtype. Products that stand
  for coordinates, densities, colours or norms stay in float32, `split_matmul` included.
"""

from cips3d.ops.accumulate import accumulate
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.composite import Composited, composite, composite_merged, composite_weights
from cips3d.ops.composite_checks import DensityActivation
from cips3d.ops.deep_field import DeepSirenField
from cips3d.ops.film_siren import FoldedLayer, film_siren, fold_film
from cips3d.ops.importance import MergedDepths, importance_depths
from cips3d.ops.march import Field, RayDraws, RenderedRays, march_rays
from cips3d.ops.modulated_epilogue import ModulatedEpilogue, modulated_epilogue
from cips3d.ops.modulated_fc import ModulatedWeight, demodulation, modulate_weight, modulated_fc, modulated_layer
from cips3d.ops.modulated_inr import modulated_inr
from cips3d.ops.precision import Precision
from cips3d.ops.render_rays import render_rays
from cips3d.ops.siren_field import SirenField
from cips3d.ops.split_matmul import split_matmul
from cips3d.ops.stratified import ray_points, stratified_depths, stratified_points
from cips3d.ops.upfirdn2d import binomial_kernel, upfirdn2d

__all__ = [
    "Composited",
    "DeepSirenField",
    "DensityActivation",
    "Field",
    "FoldedLayer",
    "MergedDepths",
    "ModulatedEpilogue",
    "ModulatedWeight",
    "Precision",
    "RayDraws",
    "RenderedRays",
    "SirenField",
    "accumulate",
    "bias_leaky_relu",
    "binomial_kernel",
    "composite",
    "composite_merged",
    "composite_weights",
    "demodulation",
    "film_siren",
    "fold_film",
    "importance_depths",
    "march_rays",
    "modulate_weight",
    "modulated_epilogue",
    "modulated_fc",
    "modulated_inr",
    "modulated_layer",
    "ray_points",
    "render_rays",
    "split_matmul",
    "stratified_depths",
    "stratified_points",
    "upfirdn2d",
]

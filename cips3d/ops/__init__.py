"""Operations that kernels accelerate, each with its plain PyTorch reference, and what they share.

On CUDA devices kernels compute; elsewhere, for dtypes that they do not know, and inside `kernels.disabled()`, plain
PyTorch does. Gradients are `torch.autograd`'s, of any order. An output has no gradient with respect to another output
of the same call. Forward-mode differentiation and `torch.func.grad` are refused. Infinite numbers and NaN may reach
other results in kernels than in plain PyTorch.
"""

from cips3d.ops.accumulate import accumulate
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.composite import Composited, DensityActivation, composite, composite_merged, composite_weights
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

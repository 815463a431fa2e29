"""Operations that kernels accelerate, one module each, with the plain PyTorch reference beside the public function."""

from cips3d.ops.accumulate import accumulate
from cips3d.ops.bias_leaky_relu import bias_leaky_relu
from cips3d.ops.composite import Composited, composite, composite_merged, composite_weights
from cips3d.ops.deep_field import DeepSirenField
from cips3d.ops.film_siren import film_siren
from cips3d.ops.importance import MergedDepths, importance_depths
from cips3d.ops.march import RayDraws, RenderedRays, march_rays
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

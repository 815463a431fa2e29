"""Operations that kernels accelerate, one module each, with the plain PyTorch reference beside the public function."""

from cips3d.ops.composite import Composited, accumulate, composite, composite_weights
from cips3d.ops.film_siren import film_siren
from cips3d.ops.importance import MergedDepths, importance_depths
from cips3d.ops.modulated_fc import apply_modulated_weight, modulate_weight, modulated_fc
from cips3d.ops.stratified import ray_points, stratified_depths

__all__ = [
    "Composited",
    "MergedDepths",
    "accumulate",
    "apply_modulated_weight",
    "composite",
    "composite_weights",
    "film_siren",
    "importance_depths",
    "modulate_weight",
    "modulated_fc",
    "ray_points",
    "stratified_depths",
]

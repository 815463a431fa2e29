"""Which arguments compositing is defined for."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from cips3d.ops.checks import check_device, check_shape

DensityActivation = Literal["relu", "softplus"]
DENSITY_ACTIVATIONS: tuple[str, ...] = get_args(DensityActivation)


def check_densities(density: Tensor, depths: Tensor, noise: Tensor | None, activation: str) -> None:
    """Raise, naming the argument, unless weights are defined for these."""
    shape = check_shape("density", density, (None, None, None))
    check_shape("depths", depths, shape)
    check_device("density", density, depths=depths, noise=noise)
    if shape[-1] < 1:
        raise ValueError("density must hold at least one sample a ray (shape [B, R, S] with S >= 1)")
    _check_settings(depths, noise, activation)


def check_features(density: Tensor, features: Tensor) -> None:
    """Raise, naming the argument, unless these are features of the densities' samples."""
    check_shape("features", features, (*density.shape, None))
    check_device("density", density, features=features)


def check_merged(
    density: Tensor,
    features: Tensor,
    fine_density: Tensor,
    fine_features: Tensor,
    depths: Tensor,
    order: Tensor,
    noise: Tensor | None,
    activation: str,
) -> None:
    """Raise, naming the argument, unless coarse and fine samples fit together."""
    batch, rays, samples = check_shape("coarse density", density, (None, None, None))
    *_, channels = check_shape("coarse features", features, (batch, rays, samples, None))
    _, _, fine = check_shape("fine density", fine_density, (batch, rays, None))
    check_shape("fine features", fine_features, (batch, rays, fine, channels))
    check_shape("depths", depths, (batch, rays, samples + fine))
    check_shape("order", order, (batch, rays, samples + fine), floating=False)
    others = {"coarse features": features, "fine density": fine_density, "fine features": fine_features}
    check_device("coarse density", density, **others, depths=depths, order=order, noise=noise)
    if samples < 1:
        raise ValueError("coarse density must hold at least one sample a ray (shape [B, R, S] with S >= 1)")
    if order.dtype != torch.int64:
        raise TypeError(f"order must be torch.int64, got {order.dtype}")
    for name, x, of_coarse in (("density", fine_density, density), ("features", fine_features, features)):
        if x.dtype != of_coarse.dtype:
            raise TypeError(f"fine {name} must be {of_coarse.dtype} like the coarse {name}, got {x.dtype}")
    _check_settings(depths, noise, activation)


def _check_settings(depths: Tensor, noise: Tensor | None, activation: str) -> None:
    if depths.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"depths must be torch.float32 or torch.float64, got {depths.dtype}")
    if noise is not None:
        check_shape("noise", noise, depths.shape)
    if activation not in DENSITY_ACTIVATIONS:
        raise ValueError(f"activation must be one of {DENSITY_ACTIVATIONS}, got {activation!r}")


def check_pairs(**samples: object) -> None:
    """Raise TypeError, naming the argument, unless these are pairs of densities and features."""
    for name, pair in samples.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{name} must be a pair of densities and features, got {type(pair).__name__}")

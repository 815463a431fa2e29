"""Marching along rays: stratified samples of a field, importance samples where it is opaque, one compositing."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cips3d.ops.composite import Composited, DensityActivation, composite, composite_merged, composite_weights
from cips3d.ops.importance import importance_depths
from cips3d.ops.stratified import ray_points, stratified_points


class Field(Protocol):
    """A radiance field: what is at a point."""

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """points [B, N, 3] -> raw density [B, N], values to be composited [B, N, C]."""


class RayDraws(NamedTuple):
    """The random numbers of rays."""

    stratified: Tensor  # [B, R, S] in [0, 1)
    importance: Tensor | None  # [B, R, F] in [0, 1), None without fine samples
    coarse_noise: Tensor | None  # [B, R, S] added to the raw density
    merged_noise: Tensor | None  # [B, R, S + F]


def march_rays(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    draws: RayDraws,
    t_near: float,
    t_far: float,
    *,
    activation: DensityActivation = "relu",
    last_back: bool = False,
) -> tuple[Composited, Tensor]:
    """Sample a field along rays, coarse then fine, and composite the merged samples.

    Args:
        field: evaluated at all coarse points, then at all fine points.
        origins, directions: [B, R, 3].
        draws: `RayDraws`.
        t_near, t_far: range of depths in scene units.
        activation, last_back: see `composite`; `last_back` acts on the final compositing only.

    Returns:
        `Composited`, and the depths [B, R, S + F] of its weights, ascending.

    Source: NeRF (arXiv 2003.08934), section 5, as pi-GAN and CIPS-3D use it (one field, one final compositing).
    """
    depths, points = stratified_points(origins, directions, draws.stratified, t_near, t_far)
    coarse = _evaluate(field, points)
    if draws.importance is None:
        noise = draws.coarse_noise
        return composite(*coarse, depths, noise=noise, activation=activation, last_back=last_back), depths
    with torch.no_grad():
        weights, _ = composite_weights(coarse[0], depths, noise=draws.coarse_noise, activation=activation)
        fine_depths, depths, order = importance_depths(depths, weights, draws.importance)
    fine = _evaluate(field, ray_points(origins, directions, fine_depths))
    noise = draws.merged_noise
    return composite_merged(
        coarse, fine, depths, order, noise=noise, activation=activation, last_back=last_back
    ), depths


def _evaluate(field: Field, points: Tensor) -> tuple[Tensor, Tensor]:
    """Density [B, R, S] and values [B, R, S, C] of a field at points [B, R, S, 3]."""
    density, values = field(points.flatten(1, 2))
    return density.view(points.shape[:3]), values.view(*points.shape[:3], values.shape[-1])

"""Marching along rays: stratified samples of a field, importance samples where it is opaque, one compositing."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cips3d.ops.checks import check_alike, check_device, check_shape
from cips3d.ops.composite import Composited, composite, composite_merged, composite_weights
from cips3d.ops.composite_checks import DENSITY_ACTIVATIONS, DensityActivation
from cips3d.ops.importance import importance_depths
from cips3d.ops.stratified import ray_points, stratified_points


class Field(Protocol):
    """A radiance field: what is at a point."""

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """points [B, N, 3] -> raw density [B, N], values to be composited [B, N, C]."""


class RayDraws(NamedTuple):
    """The random numbers of rays: all that a picture depends on apart from z and the camera.

    All are of the rays' device and dtype, float32 or float64.

    Attributes:
        stratified: [B, R, S] in [0, 1).
        importance: [B, R, F] in [0, 1), None without fine samples.
        coarse_noise: [B, R, S] added to the raw density.
        merged_noise: [B, R, S + F] the same for all samples, front to back.
    """

    stratified: Tensor
    importance: Tensor | None = None
    coarse_noise: Tensor | None = None
    merged_noise: Tensor | None = None

    @property
    def composited_noise(self) -> Tensor | None:
        """Noise of the samples that are composited, in the end."""
        return self.coarse_noise if self.importance is None else self.merged_noise

    def detach(self) -> RayDraws:
        """The same without gradients."""
        importance, *noise = (None if draw is None else draw.detach() for draw in self[1:])
        return RayDraws(self.stratified.detach(), importance, *noise)

    def subset(self, index: Tensor | slice) -> RayDraws:
        """The draws of the rays at positions `index`."""
        return self.part(slice(None), index)

    def part(self, images: slice, rays: Tensor | slice) -> RayDraws:
        """The draws of some rays of some images."""

        def of(draw: Tensor | None) -> Tensor | None:
            return None if draw is None else draw[images, rays]

        return RayDraws(
            self.stratified[images, rays], of(self.importance), of(self.coarse_noise), of(self.merged_noise)
        )


class RenderedRays(NamedTuple):
    """What rays see: their samples, composited.

    Attributes:
        colors: [B, R, C] Σ w colour.
        opacity: [B, R] Σ w, without what `last_back` gives the last sample.
        depth: [B, R] Σ w t.
        weights: [B, R, S + F] front to back.
        depths: [B, R, S + F] ascending; no gradient flows through them.
    """

    colors: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor
    depths: Tensor


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
) -> RenderedRays:
    """Sample a field along rays, coarse then fine, and composite the merged samples.

    Args:
        field: evaluated at all coarse points, then at all fine points.
        origins, directions: [B, R, 3].
        draws: `RayDraws`.
        t_near, t_far: range of depths in scene units.
        activation, last_back: see `composite`; `last_back` acts on the final compositing only.

    Returns:
        `RenderedRays`. Gradients flow through the field's values and densities and its points to the rays; none to the
        draws.

    Raises:
        ValueError: a shape or device does not fit, the field returns other shapes, or the range is empty.
        TypeError: the draws are of another kind, or the field returns something else.

    Source: NeRF (arXiv 2003.08934), section 5, as pi-GAN and CIPS-3D use it (one field, one final compositing).

    Example:
        >>> def ball(points):  # of radius 0.3, coloured by place
        ...     return 1000 * (0.3 - points.norm(dim=-1)), points
        >>> origins, directions = torch.tensor([[[0.0, 0.0, -1.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]])
        >>> seen = march_rays(ball, origins, directions, RayDraws(torch.full((1, 1, 64), 0.5)), 0.5, 1.5)
        >>> round(seen.depth.item(), 1), round(seen.opacity.item(), 2)
        (0.7, 1.0)
    """
    if not (torch.compiler.is_compiling() or callable(field)):
        raise TypeError(
            f"field must be a function of points, got {type(field).__name__}; render_rays takes SIREN fields"
        )
    check_draws(origins, directions, draws, activation)
    named = {f"draws.{name}": draw for name, draw in zip(RayDraws._fields, draws, strict=True)}
    check_alike("origins", origins, {"directions": directions, **named})
    draws = draws.detach()
    depths, points = stratified_points(origins, directions, draws.stratified, t_near, t_far)
    coarse = _evaluate(field, points)
    if draws.importance is None:
        noise = draws.coarse_noise
        return _rendered(composite(*coarse, depths, noise=noise, activation=activation, last_back=last_back), depths)
    with torch.no_grad():
        weights, _ = composite_weights(coarse[0], depths, noise=draws.coarse_noise, activation=activation)
        fine_depths, depths, order = importance_depths(depths, weights, draws.importance)
    fine = _evaluate(field, ray_points(origins, directions, fine_depths))
    noise = draws.merged_noise
    seen = composite_merged(coarse, fine, depths, order, noise=noise, activation=activation, last_back=last_back)
    return _rendered(seen, depths)


def _rendered(seen: Composited, depths: Tensor) -> RenderedRays:
    return RenderedRays(seen.features, seen.opacity, seen.depth, seen.weights, depths)


def _evaluate(field: Field, points: Tensor) -> tuple[Tensor, Tensor]:
    """Density [B, R, S] and values [B, R, S, C] of a field at points [B, R, S, 3]."""
    found = field(points.flatten(1, 2))
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(f"field must return a tuple of density and values, got {type(found).__name__}")
    density, values = found
    batch, count = points.shape[0], points.shape[1] * points.shape[2]
    check_shape("the field's density", density, (batch, count))
    check_shape("the field's values", values, (batch, count, None))
    return density.view(points.shape[:3]), values.view(*points.shape[:3], values.shape[-1])


def check_draws(origins: Tensor, directions: Tensor, draws: RayDraws, activation: str) -> int:
    """Raise, naming the argument, unless rays and draws fit together; returns the samples a ray."""
    if not isinstance(draws, RayDraws):
        raise TypeError(f"draws must be RayDraws, got {type(draws).__name__}")
    batch, rays, _ = check_shape("origins", origins, (None, None, 3))
    check_shape("directions", directions, (batch, rays, 3))
    _, _, coarse = check_shape("draws.stratified", draws.stratified, (batch, rays, None))
    samples = coarse
    if draws.importance is not None:
        _, _, fine = check_shape("draws.importance", draws.importance, (batch, rays, None))
        samples += fine
        if fine < 1:
            raise ValueError("draws.importance must hold at least one sample a ray, or be None")
        if coarse < 3:
            raise ValueError(f"draws.stratified must hold at least 3 samples a ray to resample from, got {coarse}")
    if coarse < 1:
        raise ValueError("draws.stratified must hold at least one sample a ray")
    for name, noise, count in (
        ("coarse_noise", draws.coarse_noise, coarse),
        ("merged_noise", draws.merged_noise, samples),
    ):
        if noise is not None:
            check_shape(f"draws.{name}", noise, (batch, rays, count))
    if draws.stratified.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"draws.stratified must be torch.float32 or torch.float64, got {draws.stratified.dtype}")
    named = {f"draws.{name}": draw for name, draw in zip(RayDraws._fields, draws, strict=True)}
    check_device("origins", origins, directions=directions, **named)
    if activation not in DENSITY_ACTIVATIONS:
        raise ValueError(f"activation must be one of {DENSITY_ACTIVATIONS}, got {activation!r}")
    return samples

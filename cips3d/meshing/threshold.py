"""The density at which a volume's surface is taken to be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.meshing.density import DensityField, default_chunk_points
from cips3d.models.volume import VolumeSettings

RAYS_A_SIDE = 24  # of every view; a mean over them needs no more
SAMPLES = 192  # a ray: at CIPS-3D's range a step is 1/192 of the cube, finer than the usual grids
LEVELS = 100  # candidates
WORST = SAMPLES / 10  # largest error of a ray, in steps: also that of a ray that misses the surface


@torch.no_grad()
def surface_threshold(field: DensityField, cameras: Cameras, settings: VolumeSettings) -> float:
    """The density whose isosurface looks most like what rays see.

    A ray with density σ sees a surface at the depth d where half of its light is gone, ∫ σ dt = ln 2, or none. For a
    level L let d_L be the depth where its density first reaches L, if anywhere. The threshold is the L with the least
    mean of min(|d_L - d|, c) over rays, c = (t_far - t_near) / 10; where only one of the two surfaces exists, the ray
    counts as c. Of levels that are equally good (within a sample's step, which is what sampling can tell) it is the
    middle: a soft surface has a best level; a solid of density σ₀ has all up to σ₀, and gets σ₀ / 2. The result
    depends on the volume and the views, on no grid.

    Args:
        cameras: the views, on the field's device.
        settings: for t_near and t_far.

    Raises:
        UserError: no ray loses half of its light.
    """
    density, raw, step = _rays_density(field, cameras, settings)
    visible, position = _half_light(density, step)
    if not visible.any():
        raise UserError(
            "the volume is too thin to have a surface: no ray of the training views loses half of its light in it; "
            "give --threshold to take one all the same"
        )
    at_half = density.gather(1, position.ceil().long().clamp_max(SAMPLES - 1)[:, None])[visible]
    top = torch.quantile(at_half, 0.95).item()
    levels = [top * k / LEVELS for k in range(1, LEVELS + 1)]
    reached, place = _first_reach(raw, [field.raw_level(level) for level in levels])  # [R, L]
    exists, apart = visible[:, None], (place - position[:, None]).abs()
    errors = torch.where(reached & exists, apart, (reached != exists) * WORST).clamp_max(WORST).mean(0)
    good = (errors <= errors.min() + visible.float().mean()).nonzero()[:, 0]
    return levels[int(good[len(good) // 2])]


def _rays_density(field: DensityField, cameras: Cameras, settings: VolumeSettings) -> tuple[Tensor, Tensor, float]:
    """Density and raw density [R, S] at even depths along the views' rays, and the step between depths."""
    rays = cameras.rays(RAYS_A_SIDE)
    origins, directions = rays.origins.reshape(-1, 1, 3), rays.directions.reshape(-1, 1, 3)
    depths = torch.linspace(settings.t_near, settings.t_far, SAMPLES, device=origins.device)
    at_once = max(1, default_chunk_points(field.device) // SAMPLES)
    parts = []
    for some in torch.arange(len(origins), device=origins.device).split(at_once):
        points = origins[some] + depths[:, None] * directions[some]  # [r, S, 3]
        parts.append(field.raw(points.flatten(0, 1)).view(len(some), SAMPLES))
    raw = torch.cat(parts)
    if not torch.isfinite(raw).all():
        raise UserError("the model's densities are not numbers: its training diverged; give an earlier checkpoint")
    return field.activated(raw), raw, (settings.t_far - settings.t_near) / (SAMPLES - 1)


def _half_light(density: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Which rays [R] lose half of their light, and where, in steps from the first sample (trapezoidal rule)."""
    passed = torch.cumsum((density[:, 1:] + density[:, :-1]) * (step / 2), dim=1)  # [R, S - 1] optical depth
    passed = torch.cat([torch.zeros_like(passed[:, :1]), passed], dim=1)
    reached, place = _first_reach(passed, [math.log(2)])
    return reached[:, 0], place[:, 0]


def _first_reach(values: Tensor, levels: list[float]) -> tuple[Tensor, Tensor]:
    """Which rows of [R, S] reach the levels [R, L], and where they first do, in steps, linear between samples."""
    wanted = values.new_tensor(levels).repeat(len(values), 1)
    index = torch.searchsorted(values.cummax(dim=1).values, wanted)  # S where it is not reached
    after, before = index.clamp_max(values.shape[1] - 1), (index - 1).clamp_min(0)
    low, high = values.gather(1, before), values.gather(1, after)
    share = ((wanted - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)).clamp(0, 1)
    return index < values.shape[1], torch.where(index > 0, before + share, 0.0)

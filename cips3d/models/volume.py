"""How a volume is sampled along rays: its settings, and the random numbers that rays are rendered with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.draws import drawn
from cips3d.errors import UserError, require_choice, require_range, require_whole
from cips3d.ops.checks import check_alike, check_shape
from cips3d.ops.composite_checks import DENSITY_ACTIVATIONS, DensityActivation
from cips3d.ops.march import RayDraws

FINE_FROM = 3  # coarse samples that can be resampled: those between the first and the last say where


@dataclass(frozen=True)
class VolumeSettings:
    """How a ray is sampled and composited."""

    samples: int = 12
    """coarse samples a ray: 3 or more where there are importance samples"""
    fine_samples: int | None = None
    """importance samples a ray; default: as many as coarse ones; 0: none"""
    t_near: float = 0.88
    """where rays begin, in scene units from the camera"""
    t_far: float = 1.12
    """where rays end"""
    density_activation: DensityActivation = "relu"
    """of raw densities"""
    last_back: bool = False
    """the last sample takes the light that is left"""
    white_back: bool = False
    """a background of ones behind the last sample"""

    def __post_init__(self) -> None:
        require_whole("samples", self.samples, 1)
        require_whole("fine_samples", self.fine, 0)
        if self.fine > 0 and self.samples < FINE_FROM:
            raise UserError(
                f"samples {self.samples} is too few to resample from; give {FINE_FROM} or more, or fine_samples 0"
            )
        require_choice("density_activation", self.density_activation, DENSITY_ACTIVATIONS)
        require_range("t_near", self.t_near)
        require_range("t_far", self.t_far)
        if not self.t_near < self.t_far:
            raise UserError(f"t_far {self.t_far:g} leaves no ray behind t_near {self.t_near:g}; give a larger one")

    @property
    def fine(self) -> int:
        return self.samples if self.fine_samples is None else self.fine_samples


def check_cameras(cameras: Cameras, weight: Tensor) -> None:
    """Raise, naming the argument, unless cameras have the dtype and device of a generator's weights.

    Raises:
        TypeError: they are no cameras.
        ValueError: dtype or device do not fit, or are of 16 bits.
    """
    if not isinstance(cameras, Cameras):
        raise TypeError(f"cameras must be Cameras, got {type(cameras).__name__}")
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"weights must be torch.float32 or torch.float64, got {weight.dtype}: rays of 16 bits would miss their "
            'pixels; autocast or set_precision("fast") compute products of 16 bits'
        )
    check_alike("the weights", weight, {"cameras": cameras.position})


def draw_random(
    batch: int,
    rays: int,
    settings: VolumeSettings,
    *,
    density_noise: float = 0.0,
    jitter: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> RayDraws:
    """The random numbers with which rays are rendered (`render_rays`, `march_rays`).

    Args:
        batch, rays: B images of R rays.
        settings: how many samples a ray has.
        density_noise: standard deviation of the Gaussian added to raw densities; 0: none.
        jitter: False puts every depth in the middle of its bin and the importance draws at equal steps: no noise in
            the picture, the same picture every time.
        generator: source of the draws; they are made on its device and moved.
        device, dtype: of the result.
    """
    samples, fine = settings.samples, settings.fine

    def uniform(count: int) -> Tensor:
        if jitter:
            return drawn(torch.rand, batch, rays, count, generator=generator, device=device, dtype=dtype)
        return ((torch.arange(count, device=device, dtype=dtype) + 0.5) / count).expand(batch, rays, count)

    def noise(count: int) -> Tensor | None:
        if density_noise == 0:
            return None
        return density_noise * drawn(torch.randn, batch, rays, count, generator=generator, device=device, dtype=dtype)

    stratified = uniform(samples) if jitter else torch.full((batch, rays, samples), 0.5, device=device, dtype=dtype)
    if fine == 0:
        return RayDraws(stratified, coarse_noise=noise(samples))
    return RayDraws(stratified, uniform(fine), noise(samples), noise(samples + fine))


def check_drawn(draws: RayDraws, batch: int, rays: int, settings: VolumeSettings) -> None:
    """Raise, naming the draw, unless these are the random numbers of R rays of B images."""
    if not isinstance(draws, RayDraws):
        raise TypeError(f"draws must be RayDraws, got {type(draws).__name__}")
    samples, fine = settings.samples, settings.fine
    needed = {"stratified": samples, "importance": fine, "coarse_noise": samples, "merged_noise": samples + fine}
    for name, count in needed.items():
        draw = getattr(draws, name)
        if draw is None:
            if name == "importance" and fine > 0:
                raise ValueError(f"draws.importance must have shape [{batch}, {rays}, {count}], got none")
        elif name in ("importance", "merged_noise") and fine == 0:
            raise ValueError(f"draws.{name} is for importance samples, and fine_samples is 0: leave it out")
        else:
            check_shape(f"draws.{name}", draw, (batch, rays, count))

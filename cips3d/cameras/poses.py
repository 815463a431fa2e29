"""Distributions of camera poses on the unit sphere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from cips3d.errors import UserError, require_range

PoseKind = Literal["gaussian", "uniform", "truncated_gaussian", "spherical_uniform", "hybrid", "fixed"]
POSE_DISTRIBUTIONS: tuple[str, ...] = get_args(PoseKind)

FRONT = math.pi / 2  # yaw and pitch of a camera that looks at the face from the front
PITCH_MARGIN = 1e-5  # pitch stays in [margin, π - margin]: at a pole, world up and viewing direction are parallel
HEIGHT_MARGIN = 1e-5  # the same of spherical_uniform, as a share of the sphere's height
TRUNCATION = 2.0  # a truncated Gaussian keeps |x| < 2 standard deviations


@dataclass(frozen=True)
class PoseDistribution:
    """How yaw and pitch of the training cameras are distributed (radians).

    yaw θ turns around the world's y axis, pitch φ is measured from it; (π/2, π/2) is the frontal view. CIPS-3D uses
    the Gaussian for faces; the other kinds are pi-GAN's.
    """

    kind: PoseKind = "gaussian"
    """gaussian, uniform (± std), truncated_gaussian (|x| < 2 std), spherical_uniform (uniform on the sphere),
    hybrid (half uniform ± 2 std, half gaussian), fixed (always the mean)."""
    yaw_mean: float = FRONT
    """radians; π/2 is the front"""
    yaw_std: float = 0.3
    """radians: a standard deviation, or half the width of a uniform distribution"""
    pitch_mean: float = FRONT
    """radians, π/2 is the horizon; of spherical_uniform π v, where the pitch is arccos(1 - 2 v)"""
    pitch_std: float = 0.155
    """as yaw_std; of spherical_uniform it is that of π v too"""

    def __post_init__(self) -> None:
        if self.kind not in POSE_DISTRIBUTIONS:
            raise UserError(f"pose kind {self.kind!r} is unknown; choose one of {', '.join(POSE_DISTRIBUTIONS)}")
        for axis in ("yaw", "pitch"):
            require_range(f"{axis}_mean", getattr(self, f"{axis}_mean"))
            require_range(f"{axis}_std", getattr(self, f"{axis}_std"), 0)

    @property
    def front_pitch(self) -> float:
        """Pitch of the front, around which views are placed: the median of the training cameras, in radians.

        The mean, except for spherical_uniform: there it is arccos(1 - 2 v) with v = pitch_mean / π.
        """
        return self.pitch_at(0.0)

    def pitch_at(self, deviations: float) -> float:
        """Pitch so many `pitch_std` from the front, in radians; of spherical_uniform, -1 and 1 give its ends."""
        angle = self.pitch_mean + deviations * self.pitch_std
        if self.kind != "spherical_uniform":
            return angle
        height = min(max(angle / math.pi, HEIGHT_MARGIN), 1 - HEIGHT_MARGIN)  # share of the sphere's, from +y
        return math.acos(1 - 2 * height)

    def sample(
        self, batch: int, *, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Draw poses.

        Returns:
            pitch [batch], yaw [batch], in radians; pitch is clamped to [1e-5, π - 1e-5].
        """

        def uniform() -> Tensor:  # in [-1, 1)
            return torch.rand(batch, generator=generator, device=device) * 2 - 1

        def gaussian() -> Tensor:
            return torch.randn(batch, generator=generator, device=device)

        def truncated_gaussian() -> Tensor:
            low, high = (torch.special.ndtr(torch.tensor(x)).item() for x in (-TRUNCATION, TRUNCATION))
            share = torch.rand(batch, generator=generator, device=device)
            return torch.special.ndtri(low + (high - low) * share)

        def around_means(draw: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
            yaw = self.yaw_mean + self.yaw_std * draw()
            return self.pitch_mean + self.pitch_std * draw(), yaw

        if self.kind == "gaussian":
            pitch, yaw = around_means(gaussian)
        elif self.kind == "uniform":
            pitch, yaw = around_means(uniform)
        elif self.kind == "truncated_gaussian":
            pitch, yaw = around_means(truncated_gaussian)
        elif self.kind == "hybrid":
            use_uniform = torch.rand(batch, generator=generator, device=device) < 0.5
            wide = around_means(lambda: 2 * uniform())
            normal = around_means(gaussian)
            pitch, yaw = (torch.where(use_uniform, w, n) for w, n in zip(wide, normal, strict=True))
        elif self.kind == "spherical_uniform":
            yaw = self.yaw_mean + self.yaw_std * uniform()
            height = self.pitch_mean / math.pi + self.pitch_std / math.pi * uniform()
            height = height.clamp(HEIGHT_MARGIN, 1 - HEIGHT_MARGIN)
            pitch = torch.arccos(1 - 2 * height)  # equal areas: cos φ is uniform
        else:
            pitch = torch.full((batch,), self.pitch_mean, device=device)
            yaw = torch.full((batch,), self.yaw_mean, device=device)
        return pitch.clamp(PITCH_MARGIN, math.pi - PITCH_MARGIN), yaw

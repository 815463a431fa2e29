"""From where a browser looks at the head, and how far it may go round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.cameras.poses import PITCH_MARGIN, TRUNCATION

NEAREST = 0.25  # share of the trained distance; a picture's side then shows a quarter of the trained picture's
FARTHEST = 1.0  # beyond it, rays would leave the field that pictures of the training showed

# How far training cameras went, in standard deviations, where their distribution does not end by itself: 95 of 100.
GAUSSIAN_REACH = 2.0


@dataclass(frozen=True)
class Orbit:
    """A camera that looks at the origin, where the head is."""

    yaw: float
    """radians around +y; π/2 is the front"""
    pitch: float
    """radians from +y; π/2 is the horizon"""
    zoom: float = 1.0
    """what the picture shows of the trained field of view, as a share of its side: smaller is nearer"""

    @property
    def position(self) -> tuple[float, float, float]:
        """Where a browser's camera stands for this, at a distance of `zoom` from the origin."""
        sin = math.sin(self.pitch)
        direction = (sin * math.cos(self.yaw), math.cos(self.pitch), sin * math.sin(self.yaw))
        x, y, z = (self.zoom * part for part in direction)
        return x, y, z

    def cameras(self, fov_degrees: float) -> Cameras:
        """The one camera that renders this view.

        It stands at distance 1, as in training; coming nearer narrows its angle of view,
        tan(fov' / 2) = zoom · tan(fov / 2), so that the perspective stays the trained one.

        Args:
            fov_degrees: of the trained cameras.
        """
        fov = 2 * math.degrees(math.atan(self.zoom * math.tan(math.radians(fov_degrees) / 2)))
        return Cameras.from_angles(torch.tensor([self.pitch]), torch.tensor([self.yaw]), fov)


def orbit_at(position: Sequence[float], target: Sequence[float]) -> Orbit:
    """The view of a camera at `position` that looks at `target`, carried over to one that looks at the origin.

    Args:
        position: x, y, z.
        target: x, y, z, elsewhere.
    """
    x, y, z = (float(p) - float(t) for p, t in zip(position, target, strict=True))
    distance = math.hypot(x, y, z)
    if not 0 < distance < math.inf:
        raise ValueError(f"position must be finite and apart from target, got {position} and {target}")
    return Orbit(math.atan2(z, x), math.acos(max(-1.0, min(1.0, y / distance))), distance)


@dataclass(frozen=True)
class OrbitLimits:
    """The views that are offered; ranges in radians, around a middle."""

    yaw_middle: float
    yaw_reach: float
    """to both sides; π or more: all around"""
    pitch: tuple[float, float]

    @property
    def front(self) -> Orbit:
        """The middle."""
        return Orbit(self.yaw_middle, sum(self.pitch) / 2)

    def held(self, orbit: Orbit) -> Orbit:
        """The view within the limits that is nearest in each angle and in zoom."""
        aside = math.remainder(orbit.yaw - self.yaw_middle, 2 * math.pi)
        return Orbit(
            self.yaw_middle + _clamped(aside, -self.yaw_reach, self.yaw_reach),
            _clamped(orbit.pitch, *self.pitch),
            _clamped(orbit.zoom, NEAREST, FARTHEST),
        )


def trained_limits(poses: PoseDistribution) -> OrbitLimits:
    """The views that training showed: all of a distribution that ends, and ±2 standard deviations of a Gaussian."""
    reach = {"uniform": 1.0, "fixed": 0.0, "truncated_gaussian": TRUNCATION}.get(poses.kind, GAUSSIAN_REACH)
    if poses.kind == "spherical_uniform":
        share, half = poses.pitch_mean / math.pi, poses.pitch_std / math.pi  # of the sphere's height, from +y
        low, high = (math.acos(1 - 2 * _clamped(height, 0, 1)) for height in (share - half, share + half))
        return OrbitLimits(poses.yaw_mean, poses.yaw_std, _off_the_poles(low, high))
    spread = reach * poses.pitch_std
    return OrbitLimits(
        poses.yaw_mean,
        reach * poses.yaw_std,
        _off_the_poles(poses.pitch_mean - spread, poses.pitch_mean + spread),
    )


def all_limits(poses: PoseDistribution) -> OrbitLimits:
    """Views from all around the head; their middle is that of the trained ones."""
    return OrbitLimits(poses.yaw_mean, math.pi, _off_the_poles(0.0, math.pi))


def _off_the_poles(low: float, high: float) -> tuple[float, float]:
    """The range of pitches without the poles, where up and the viewing direction are parallel."""
    return _clamped(low, PITCH_MARGIN, math.pi - PITCH_MARGIN), _clamped(high, PITCH_MARGIN, math.pi - PITCH_MARGIN)


def _clamped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)

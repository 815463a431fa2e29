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

# How far training cameras went, in standard deviations: to the end of distributions that end, else 95 of 100.
REACH = {"uniform": 1.0, "spherical_uniform": 1.0, "truncated_gaussian": TRUNCATION, "fixed": 0.0}
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
    """The views that are offered, in radians."""

    yaw_middle: float
    yaw_reach: float
    """to both sides; π or more: all around"""
    pitch: tuple[float, float]
    front_pitch: float
    """within that range, not always in its middle"""

    @property
    def front(self) -> Orbit:
        """Where the training cameras' median stands."""
        return Orbit(self.yaw_middle, self.front_pitch)

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
    reach = REACH.get(poses.kind, GAUSSIAN_REACH)
    return _limits(poses, reach * poses.yaw_std, poses.pitch_at(-reach), poses.pitch_at(reach))


def all_limits(poses: PoseDistribution) -> OrbitLimits:
    """Views from all around the head; their front is that of the trained ones."""
    return _limits(poses, math.pi, 0.0, math.pi)


def _limits(poses: PoseDistribution, yaw_reach: float, low: float, high: float) -> OrbitLimits:
    """Limits without the poles, where up and the viewing direction are parallel."""
    low, front, high = (
        _clamped(pitch, PITCH_MARGIN, math.pi - PITCH_MARGIN) for pitch in (low, poses.front_pitch, high)
    )
    return OrbitLimits(poses.yaw_mean, yaw_reach, (low, high), front)


def _clamped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)

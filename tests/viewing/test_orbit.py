"""Views that browsers ask for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.cameras.poses import POSE_DISTRIBUTIONS
from cips3d.viewing.orbit import FARTHEST, NEAREST, Orbit, OrbitLimits, all_limits, orbit_at, trained_limits

FRONT = math.pi / 2
TOLERANCE = 1e-6  # single precision of numbers near 1


@pytest.mark.parametrize(("yaw", "pitch", "zoom"), [(FRONT, FRONT, 1.0), (1.2, 1.8, 0.5), (-2.5, 0.3, 0.25)])
def test_position_and_back(yaw: float, pitch: float, zoom: float) -> None:
    orbit = orbit_at(Orbit(yaw, pitch, zoom).position, (0, 0, 0))
    assert (orbit.yaw, orbit.pitch, orbit.zoom) == pytest.approx((yaw, pitch, zoom), abs=1e-12)


def test_position_is_that_of_the_camera() -> None:
    orbit = Orbit(1.2, 1.8)
    cameras = orbit.cameras(12.0)
    assert cameras.position[0].tolist() == pytest.approx(orbit.position, abs=TOLERANCE)
    assert cameras.fov_degrees.item() == pytest.approx(12.0, abs=1e-5)


def test_moves_of_the_target_do_not_count() -> None:
    there = orbit_at((0.3, 0.1, 1.0), (0.3, 0.1, 0.0))
    assert (there.yaw, there.pitch, there.zoom) == pytest.approx((FRONT, FRONT, 1.0))


@pytest.mark.parametrize("position", [(1.0, 2.0, 3.0), (math.nan, 0.0, 0.0), (math.inf, 0.0, 0.0)])
def test_position_without_a_direction(position: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="position must be"):
        orbit_at(position, (1.0, 2.0, 3.0))


def test_zoom_shows_a_share_of_the_picture() -> None:
    """The corner rays at half zoom are those halfway to the corner without."""
    near, far = Orbit(1.4, 1.6, 0.5).cameras(12.0), Orbit(1.4, 1.6).cameras(12.0)
    corner, halfway = near.rays(2).directions[0, 0], far.rays(5).directions[0, 6]
    assert torch.allclose(corner, halfway, atol=TOLERANCE)
    assert torch.allclose(near.position, far.position)


@pytest.mark.parametrize("kind", POSE_DISTRIBUTIONS)
def test_trained_views_are_within_the_limits(kind: str) -> None:
    poses = PoseDistribution(kind, yaw_mean=1.9, yaw_std=0.35, pitch_mean=1.4, pitch_std=0.2)  # type: ignore[arg-type]
    limits = trained_limits(poses)
    pitch, yaw = poses.sample(4000, generator=torch.Generator().manual_seed(0))
    low, high = limits.pitch
    aside = (yaw - poses.yaw_mean).abs()
    inside = (
        (aside <= limits.yaw_reach + TOLERANCE) & (pitch >= low - TOLERANCE) & (pitch <= high + TOLERANCE)
    ).float()
    if kind in ("gaussian", "hybrid"):  # two normal angles, each within two deviations: 0.9545² = 0.911
        assert 0.89 < inside.mean() < 0.97
        return
    assert inside.mean() == 1
    # No wider than needed: the outermost of 4000 are near the ends.
    assert aside.max() > 0.97 * limits.yaw_reach - TOLERANCE
    assert pitch.min() < low + 0.03 * (high - low) + TOLERANCE
    assert pitch.max() > high - 0.03 * (high - low) - TOLERANCE


@pytest.mark.parametrize("kind", POSE_DISTRIBUTIONS)
@pytest.mark.parametrize("limits_of", [trained_limits, all_limits])
def test_begins_at_the_front_of_the_training_cameras(
    kind: str, limits_of: Callable[[PoseDistribution], OrbitLimits]
) -> None:
    poses = PoseDistribution(kind, yaw_mean=1.9, pitch_mean=0.9, pitch_std=0.3)  # type: ignore[arg-type]
    assert limits_of(poses).front == Orbit(1.9, poses.front_pitch)


@pytest.mark.parametrize("mean", [0.0, math.pi])
def test_front_keeps_clear_of_the_poles(mean: float) -> None:
    limits = trained_limits(PoseDistribution(pitch_mean=mean))
    assert 0 < limits.pitch[0] <= limits.front.pitch <= limits.pitch[1] < math.pi


def test_held_at_the_nearest_view() -> None:
    limits = OrbitLimits(FRONT, 0.5, (1.3, 1.8), front_pitch=1.5)
    inside = Orbit(1.4, 1.5, 0.7)
    assert limits.held(inside) == inside
    assert limits.held(Orbit(FRONT + 0.6, 2.5, 3.0)) == Orbit(FRONT + 0.5, 1.8, FARTHEST)
    assert limits.held(Orbit(-FRONT + 0.1, 0.1, 0.01)) == Orbit(FRONT - 0.5, 1.3, NEAREST)
    assert limits.held(Orbit(1.4 + 2 * math.pi, 1.5, 0.7)).yaw == pytest.approx(1.4)
    assert limits.front == Orbit(FRONT, 1.5)


def test_all_around() -> None:
    limits = all_limits(PoseDistribution(yaw_mean=1.9))
    assert limits.front.yaw == 1.9
    for yaw in np.linspace(-math.pi, math.pi, 9):
        held = limits.held(Orbit(float(yaw), 0.0))
        assert math.remainder(held.yaw - yaw, 2 * math.pi) == pytest.approx(0, abs=1e-12)
        cameras = held.cameras(12.0)
        assert torch.isfinite(cameras.rotation).all()
        assert isinstance(cameras, Cameras)

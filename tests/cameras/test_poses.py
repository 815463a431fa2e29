"""Distributions of poses: moments and bounds that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cips3d.cameras import POSE_DISTRIBUTIONS, PoseDistribution
from cips3d.errors import UserError

COUNT = 20_000
FRONT = math.pi / 2


def draw(kind: Any, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return PoseDistribution(kind, **settings).sample(COUNT, generator=generator)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("gaussian", 1.0),
        ("uniform", 1 / math.sqrt(3)),  # of a uniform variable on ± std
        ("truncated_gaussian", 0.8796),  # of a Gaussian kept within ± 2 (closed form)
        ("hybrid", math.sqrt((4 / 3 + 1) / 2)),  # half uniform ± 2 std, half Gaussian
        ("fixed", 0.0),
    ],
)
def test_moments(kind: str, factor: float) -> None:
    pitch, yaw = draw(kind)
    # standard errors of a mean and a standard deviation over 20 000 draws: 0.7 % and 0.5 % of the spread
    assert yaw.mean().item() == pytest.approx(FRONT, abs=0.03 * 0.3)
    assert pitch.mean().item() == pytest.approx(FRONT, abs=0.03 * 0.155)
    assert yaw.std().item() == pytest.approx(factor * 0.3, rel=0.03, abs=1e-5)
    assert pitch.std().item() == pytest.approx(factor * 0.155, rel=0.03, abs=1e-5)


def test_bounds() -> None:
    for kind, bound in (("uniform", 1.0), ("truncated_gaussian", 2.0)):
        _, yaw = draw(kind)
        distance = (yaw - FRONT).abs().max().item() / 0.3
        assert 0.97 * bound < distance <= bound + 1e-4


def test_sphere_is_covered_evenly() -> None:
    """Equal heights of a sphere have equal areas: cos(pitch) is uniform."""
    pitch, yaw = draw("spherical_uniform", yaw_std=math.pi, pitch_std=math.pi / 2)
    height = torch.cos(pitch)
    assert height.mean().item() == pytest.approx(0, abs=0.02)
    assert height.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.02)
    assert yaw.std().item() == pytest.approx(math.pi / math.sqrt(3), rel=0.02)


def test_pitch_keeps_clear_of_the_poles() -> None:
    pitch, _ = draw("gaussian", pitch_std=10.0)
    assert pitch.min() >= 1e-5 * 0.99 and pitch.max() <= math.pi - 1e-5 * 0.99


def test_every_coordinate_on_the_whole_sphere_is_uniform() -> None:
    """Archimedes: x, y and z of a uniform direction are each uniform in [-1, 1]."""
    pitch, yaw = draw("spherical_uniform", yaw_std=math.pi, pitch_std=math.pi / 2)
    for coordinate in (pitch.sin() * yaw.cos(), pitch.cos(), pitch.sin() * yaw.sin()):
        distance = (coordinate.sort().values - torch.linspace(-1, 1, COUNT)).abs().max().item() / 2
        assert distance < 2.0 / math.sqrt(COUNT)  # Kolmogorov-Smirnov: exceeded with probability 2 exp(-8)


def test_spherical_band() -> None:
    """pi-GAN's CARLA: pitch_mean = pitch_std = π/4 · 85/90 covers heights from 1 - 85/90 to 1."""
    band = math.pi / 4 * 85 / 90
    height = draw("spherical_uniform", pitch_mean=band, pitch_std=band)[0].cos()
    assert 1 - 85 / 90 - 1e-6 < height.min().item() < 1 - 85 / 90 + 2e-3
    assert height.max().item() > 1 - 2e-3
    assert height.mean().item() == pytest.approx(1 - 85 / 180, abs=0.01)


@pytest.mark.parametrize("kind", POSE_DISTRIBUTIONS)
@pytest.mark.parametrize(("mean", "std"), [(1.4, 0.2), (math.pi / 4, math.pi / 20), (math.pi / 4, math.pi / 4)])
def test_front_is_the_median_camera(kind: Any, mean: float, std: float) -> None:
    pitch, yaw = draw(kind, yaw_mean=1.9, yaw_std=std, pitch_mean=mean, pitch_std=std)
    front = PoseDistribution(kind, pitch_mean=mean, pitch_std=std).front_pitch
    # The median of n draws has a standard error of 1 / (2 f √n), f their density there: 0.011 std of hybrid, the most.
    assert pitch.median().item() == pytest.approx(front, abs=0.04 * std + 1e-5)
    assert yaw.median().item() == pytest.approx(1.9, abs=0.04 * std + 1e-5)
    if kind != "spherical_uniform":
        assert front == mean


def test_front_of_a_spherical_band() -> None:
    """Half of the band's area lies on either side; its ends are those of the drawn pitches."""
    poses = PoseDistribution("spherical_uniform", pitch_mean=math.pi / 4, pitch_std=math.pi / 20)
    assert poses.front_pitch == pytest.approx(math.pi / 3)
    assert poses.pitch_at(-1) == pytest.approx(math.acos(1 - 2 * 0.2))
    assert poses.pitch_at(1) == pytest.approx(math.acos(1 - 2 * 0.3))
    pitch, _ = draw("spherical_uniform", pitch_mean=math.pi / 4, pitch_std=math.pi / 20)
    assert (pitch.min().item(), pitch.max().item()) == pytest.approx((poses.pitch_at(-1), poses.pitch_at(1)), abs=1e-4)


@pytest.mark.parametrize("mean", [0.0, math.pi])
def test_front_of_a_cap(mean: float) -> None:
    """Half of the draws are cut off at the pole, where the median is then."""
    poses = PoseDistribution("spherical_uniform", pitch_mean=mean, pitch_std=0.2)
    pitch, _ = draw("spherical_uniform", pitch_mean=mean, pitch_std=0.2)
    assert 0 < poses.front_pitch < math.pi
    assert pitch.quantile(0.4 if mean == 0.0 else 0.6).item() == pytest.approx(poses.front_pitch, abs=1e-4)


def test_hybrid_takes_yaw_and_pitch_from_the_same_half() -> None:
    """Beyond 2 std there are only Gaussian draws, of both angles together."""
    pitch, yaw = draw("hybrid")
    off_yaw, off_pitch = (yaw - FRONT).abs() / 0.3, (pitch - FRONT).abs() / 0.155
    tail = math.erfc(math.sqrt(2))
    for found, expected in (((off_yaw > 2), tail / 2), ((off_yaw > 2) & (off_pitch > 2), tail**2 / 2)):
        assert abs(found.double().mean().item() - expected) < 5 * math.sqrt(expected / COUNT)


@pytest.mark.parametrize("kind", POSE_DISTRIBUTIONS)
def test_generator_decides(kind: Any) -> None:
    first, again = draw(kind), draw(kind)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"yaw_std": -1.0}, "yaw_std -1 makes no sense; give 0 or more"),
        ({"yaw_std": math.nan}, "yaw_std nan makes no sense"),
        ({"pitch_std": math.inf}, "pitch_std inf makes no sense"),
        ({"yaw_mean": math.nan}, "yaw_mean nan makes no sense; give a finite number"),
        ({"pitch_mean": -math.inf}, "pitch_mean -inf makes no sense"),
    ],
)
def test_numbers_that_place_no_camera(settings: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PoseDistribution(**settings)


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match=r"pose kind 'sideways'.*gaussian"):
        PoseDistribution("sideways")  # type: ignore[arg-type]

"""Volume rendering of a field that is known: a ball."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.models.volume import VolumeSettings, draw_random, render_volume

RADIUS = 0.06


def ball(points: Tensor) -> tuple[Tensor, Tensor]:
    """Dense inside, empty outside; the values are the places."""
    return 1e4 * (points.norm(dim=-1) < RADIUS).to(points.dtype), points


def look(settings: VolumeSettings, resolution: int = 15, jitter: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Depth, Σ w and the true depth (inf beside the ball) of every ray."""
    angle = torch.full((1,), math.pi / 2, dtype=torch.float64)
    rays = Cameras.from_angles(angle, angle).rays(resolution)
    draws = draw_random(
        1, resolution**2, settings, jitter=jitter, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    ray = render_volume(ball, rays, settings, draws)
    middle = -(rays.origins * rays.directions).sum(-1)
    half_chord = RADIUS**2 - (1 - middle**2)
    true = torch.where(half_chord > 0, middle - half_chord.clamp_min(0).sqrt(), torch.inf)
    return ray.depth[0], ray.opacity[0], true[0]


def test_depth_of_a_ball() -> None:
    depth, opacity, true = look(VolumeSettings(samples=64, fine_samples=64))
    hit = torch.isfinite(true) & (true < 0.98)  # rays that graze the ball may pass between two samples
    assert hit.sum() > 20
    assert torch.allclose(opacity[hit], torch.ones_like(opacity[hit]))
    # the surface lies within one coarse bin (0.24 / 63), which the fine samples divide
    assert (depth[hit] - true[hit]).abs().max() < 0.24 / 63
    assert opacity[torch.isinf(true)].max() == 0


def test_fine_samples_sharpen() -> None:
    def error(fine: int) -> float:
        depth, _, true = look(VolumeSettings(samples=16, fine_samples=fine))
        hit = true < 0.97
        return float((depth[hit] - true[hit]).abs().mean())

    assert error(48) < 0.6 * error(0)


def test_draws() -> None:
    settings = VolumeSettings(samples=4, fine_samples=3)
    draws = draw_random(2, 5, settings, density_noise=0.5, generator=torch.Generator().manual_seed(1))
    shapes = [tuple(d.shape) for d in draws if d is not None]
    assert shapes == [(2, 5, 4), (2, 5, 3), (2, 5, 4), (2, 5, 7)]
    some = draws.subset(torch.tensor([4, 0]))
    assert torch.equal(some.stratified, draws.stratified[:, [4, 0]])
    quiet = draw_random(2, 5, settings, jitter=False)
    assert (quiet.stratified == 0.5).all() and quiet.coarse_noise is None


def test_density_noise_has_the_asked_spread() -> None:
    draws = draw_random(1, 5000, VolumeSettings(), density_noise=0.3, generator=torch.Generator().manual_seed(1))
    assert draws.merged_noise is not None
    assert draws.merged_noise.std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"samples": 0}, "samples 0 makes no sense"),
        ({"samples": 1}, "samples 1 is too few to resample from; give 3 or more, or fine_samples 0"),
        ({"samples": 2, "fine_samples": 4}, "samples 2 is too few to resample from"),
        ({"t_near": -math.inf}, "t_near -inf makes no sense"),
        ({"t_far": math.inf}, "t_far inf makes no sense"),
        ({"t_near": 1.12}, "t_far 1.12 leaves no ray behind t_near 1.12"),
        ({"density_activation": "rely"}, "density_activation 'rely' is unknown; choose one of relu, softplus"),
    ],
)
def test_wrong_settings_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        VolumeSettings(**fields)


@pytest.mark.parametrize(
    "settings", [VolumeSettings(1, 0), VolumeSettings(2, 0), VolumeSettings(3), VolumeSettings(3, 1)]
)
def test_fewest_samples(settings: VolumeSettings) -> None:
    _, opacity, true = look(settings)
    assert opacity.isfinite().all() and opacity[torch.isinf(true)].max() == 0

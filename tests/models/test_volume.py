"""Settings and draws of a volume: their ranges, and what they make of a field that is known, a ball."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from inversion.small_models import small
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.models.pigan import PiGAN
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings, check_drawn, draw_random
from cips3d.ops.march import RayDraws, march_rays
from cips3d.rendering import styles_of_seeds

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
    ray = march_rays(ball, *rays, draws, settings.t_near, settings.t_far)
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


def test_rays_begin_and_end_where_they_are_asked_to() -> None:
    """In the middle of the ball, and before it."""
    depth, opacity, true = look(VolumeSettings(samples=16, t_near=0.97))
    assert (depth[true < 0.95] >= 0.97).all() and (opacity[true < 0.95] > 0.99).all()
    _, opacity, _ = look(VolumeSettings(samples=16, t_far=0.93))
    assert (opacity == 0).all()


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
    assert quiet.importance is not None
    torch.testing.assert_close(quiet.importance, torch.tensor([1 / 6, 3 / 6, 5 / 6]).expand(2, 5, 3))


@pytest.mark.parametrize("fine", [1, 4])
def test_draws_without_those_of_importance_samples(fine: int) -> None:
    settings = VolumeSettings(samples=4, fine_samples=fine)
    with pytest.raises(ValueError, match=rf"draws\.importance must have shape \[2, 5, {fine}\], got none"):
        check_drawn(RayDraws(torch.rand(2, 5, 4)), 2, 5, settings)
    check_drawn(RayDraws(torch.rand(2, 5, 4)), 2, 5, replace(settings, fine_samples=0))


@pytest.mark.parametrize("fine", [0, 3])
def test_no_gradient_flows_to_the_draws(fine: int) -> None:
    settings = VolumeSettings(samples=4, fine_samples=fine)
    random = torch.Generator().manual_seed(0)
    drawn = draw_random(1, 2, settings, density_noise=0.5, generator=random, dtype=torch.float64)
    draws = RayDraws(*(None if x is None else x.requires_grad_() for x in drawn))
    origins = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.02, 1.0]]], dtype=torch.float64, requires_grad=True)
    directions = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand(1, 2, 3)
    seen = march_rays(lambda p: (100 * (0.1 - p.norm(dim=-1)), p), origins, directions, draws, 0.88, 1.12)
    given = [x for x in draws if x is not None]
    of_origins, *of_draws = torch.autograd.grad(
        seen.colors.sum() + seen.depth.sum(), [origins, *given], allow_unused=True
    )
    assert of_origins.abs().max() > 0
    assert all(gradient is None for gradient in of_draws)


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
        ({"samples": "many"}, "samples 'many' is no number; give one"),
        ({"samples": 8.5}, "samples 8.5 is no whole number; give 1 or more"),
        ({"fine_samples": 8.5}, "fine_samples 8.5 is no whole number; give 0 or more"),
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


@pytest.mark.parametrize("system", ["cips3d", "pigan"])
def test_every_setting_shows_in_the_pictures(system: str) -> None:
    loaded = small(system)
    styles, front = styles_of_seeds(loaded, [0]), torch.full((1,), math.pi / 2)
    if isinstance(loaded.generator, PiGAN):  # untrained, it is opaque everywhere
        points = torch.rand(1, 999, 3, generator=torch.Generator().manual_seed(0)) / 4 - 0.125
        loaded.generator.nerf.density.bias.sub_(loaded.generator.density(styles, points).median())
    usual = VolumeSettings(samples=4)
    changes: list[dict[str, Any]] = [
        *({"samples": 6, "fine_samples": 4}, {"fine_samples": 6}, {"t_near": 0.8}, {"t_far": 1.2}),
        *({"density_activation": "softplus"}, {"last_back": True}, {"white_back": True}),
    ]
    shown = []
    for settings in (usual, *(replace(usual, **change) for change in changes)):
        view = View(8, Cameras.from_angles(front, front), settings, jitter=False)
        shown.append(loaded.generator.render(styles, view).image)
    for image, change in zip(shown[1:], changes, strict=True):
        assert not torch.allclose(image, shown[0], atol=1e-4), change


@pytest.mark.parametrize("system", ["cips3d", "pigan"])
def test_generators_look_where_they_are_asked_to(system: str) -> None:
    loaded = small(system)
    for near, far in ((0.5, 0.7), (1.2, 1.3)):
        settings = replace(loaded.settings, t_near=near, t_far=far)
        front = torch.full((1,), math.pi / 2)
        view = View(8, Cameras.from_angles(front, front), settings, jitter=False)
        depth = loaded.generator.render(styles_of_seeds(loaded, [0]), view).depth
        assert depth is not None
        assert near <= depth.min() and depth.max() <= far + 1e-6

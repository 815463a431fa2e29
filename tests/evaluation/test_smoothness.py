"""Depth smoothness where the answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from evaluation.analytic import Analytic, Flat, loaded_of, nothing, plane, sphere
from torch import Tensor

from cips3d.cameras import Rays
from cips3d.errors import UserError
from cips3d.evaluation import smoothness
from cips3d.evaluation.smoothness import depth_smoothness, roughness_of
from cips3d.evaluation.views import FaceSample
from cips3d.rendering import LoadedGenerator

NEAR, FAR = 0.88, 1.12
LENGTH = FAR - NEAR


def test_slanted_plane_is_smooth() -> None:
    depth = 0.95 + 0.001 * torch.arange(32.0)[:, None] + 0.002 * torch.arange(24.0)
    found = roughness_of(depth.double()[None, None], NEAR, FAR)
    assert found.roughness == pytest.approx(0, abs=1e-3)  # float32 depths: 1e-7 of 0.24, in thousandths
    assert found.edges == 0


def test_curvature() -> None:
    """t = a k² has the second difference 2 a along rows and none along columns."""
    a, columns = 1e-4, torch.arange(20.0, dtype=torch.float64)
    depth = (0.95 + a * columns**2).expand(2, 1, 15, 20)
    along_rows, along_columns = 15 * 18, 13 * 20
    expected = 1000 * 2 * a / LENGTH * along_rows / (along_rows + along_columns)
    assert roughness_of(depth, NEAR, FAR).roughness == pytest.approx(expected, rel=1e-9)


def test_noise() -> None:
    """Second differences of noise of deviation s are normal with √6 s, whose mean size is √(2/π) of it."""
    s = 0.001
    noise = torch.randn(4, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = roughness_of(1 + s * noise, NEAR, FAR)
    # 32 000 correlated terms with a relative deviation of 0.76 each: about 1 %.
    assert found.roughness == pytest.approx(1000 * math.sqrt(12 / math.pi) * s / LENGTH, rel=0.03)


def test_silhouettes_and_empty_space_do_not_count() -> None:
    depth = torch.full((1, 1, 10, 12), 0.95)
    depth[..., 6:] = 1.05  # a jump of 0.42 of the ray
    depth[..., 10:] = FAR
    found = roughness_of(depth, NEAR, FAR)
    assert found.roughness == pytest.approx(0, abs=1e-9)
    assert found.edges == pytest.approx(10 / (10 * 9 + 9 * 10))


def test_noisy_sphere_is_rougher_than_a_sphere() -> None:
    def noisy(rays: Rays) -> Tensor:
        t = sphere(0.08)(rays)
        noise = 0.002 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1))
        return torch.where(t < FAR, t + noise, t)

    smooth, rough, flat = (
        depth_smoothness(loaded_of(Analytic(hit), 48), FaceSample(2)).roughness
        for hit in (sphere(0.08), noisy, plane())
    )
    assert flat < smooth < rough
    assert rough > 1000 * math.sqrt(12 / math.pi) * 0.002 / LENGTH  # noise comes on top of the curvature


def test_faces_are_seen_from_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    yaws: list[Tensor] = []
    seen_from = smoothness.seen_from

    def recorded(loaded: LoadedGenerator, faces: FaceSample, pitch: Tensor, yaw: Tensor, **of: Any) -> Any:
        yaws.append(yaw)
        return seen_from(loaded, faces, pitch, yaw, **of)

    monkeypatch.setattr(smoothness, "seen_from", recorded)
    depth_smoothness(loaded_of(Analytic(plane()), 8), FaceSample(1))
    assert torch.equal(yaws[0], -yaws[0].flip(0)) and len(yaws[0].unique()) == 3


def test_rays_of_another_length() -> None:
    """The same plane is as much smoother as they are longer."""
    loaded = loaded_of(Analytic(plane()), 48)
    longer = replace(loaded, settings=replace(loaded.settings, t_near=0.7, t_far=1.2))
    short, long = (depth_smoothness(model, FaceSample(2)).roughness for model in (loaded, longer))
    assert long == pytest.approx(short * LENGTH / 0.5, rel=1e-4)


def test_a_single_pixel() -> None:
    with pytest.raises(ValueError, match="depth must have sides of 2 pixels or more"):
        roughness_of(torch.ones(1, 1, 1, 1), 0.5, 1.5)


def test_nothing_and_2d() -> None:
    assert math.isnan(depth_smoothness(loaded_of(Analytic(nothing)), FaceSample(2)).roughness)
    with pytest.raises(UserError, match="smoothness needs a 3-D model"):
        depth_smoothness(loaded_of(Flat()), FaceSample(2))

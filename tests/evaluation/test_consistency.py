"""Multi-view consistency where the answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from evaluation.analytic import FRONT, SETTINGS, Analytic, Flat, loaded_of, nothing, plane, sphere, waves
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution, Rays
from cips3d.errors import UserError
from cips3d.evaluation import consistency
from cips3d.evaluation.consistency import view_consistency
from cips3d.evaluation.views import FaceSample

RADIUS = 0.08
FACES = FaceSample(2)


def brightened(points: Tensor, phase: Tensor, cameras: Cameras) -> Tensor:
    """One colour all over, which rises by 0.5 a radian of yaw."""
    return (0.5 * (cameras.yaw - FRONT))[:, None, None].expand(*points.shape)


def glued(points: Tensor, phase: Tensor, cameras: Cameras) -> Tensor:
    """A pattern that sticks to the picture: waves of the position in the camera's own axes."""
    return waves(points @ cameras.rotation, phase, cameras)


def test_known_difference_of_neighbours() -> None:
    """Neighbouring views are 0.2 rad apart, so colours in [0, 1] differ by 0.5 · 0.2 / 2 everywhere."""
    found = view_consistency(loaded_of(Analytic(plane(), brightened)), FACES)
    assert found.psnr == pytest.approx(-20 * math.log10(0.05), abs=1e-3)  # float32 colours
    assert found.perceptual is None


def test_texture_of_the_surface_against_one_of_the_picture() -> None:
    true = view_consistency(loaded_of(Analytic(sphere(RADIUS)), 64), FACES)
    false = view_consistency(loaded_of(Analytic(sphere(RADIUS), glued), 64), FACES)
    # What remains is interpolation, (90 rad/unit · 0.0033 units)² / 8 · 0.8 = 0.009 of a range of 2, and the rim.
    assert true.psnr > 40
    assert false.psnr < 15
    assert true.overlap == pytest.approx(false.overlap)  # it is a matter of depth alone
    for kind in ("gaussian", "spherical_uniform"):
        aside = PoseDistribution(kind, yaw_mean=FRONT + 0.5, pitch_mean=FRONT - 0.3)
        assert view_consistency(replace(loaded_of(Analytic(sphere(RADIUS)), 64), poses=aside), FACES).psnr > 40


def test_neighbours_are_compared_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[tuple[object, ...]] = []
    monkeypatch.setattr(consistency, "_compare", lambda _, *of: pairs.append(of[:2]))
    view_consistency(loaded_of(Analytic(plane()), 8), FaceSample(1), views=3)
    assert sorted(pairs) == [(0, 1), (1, 0), (1, 2), (2, 1)]


def test_tolerance_and_empty_space_are_shares_of_the_rays() -> None:
    """Views whose depths differ by 0.02 contradict each other on rays of 0.24, not on longer ones."""

    def nearer_from_the_left(rays: Rays) -> Tensor:
        return plane()(rays) - 0.02 * (rays.origins[..., 0] > 0)

    loaded = loaded_of(Analytic(nearer_from_the_left))
    overlap = [
        view_consistency(replace(loaded, settings=settings), FACES, views=2).overlap
        for settings in (SETTINGS, replace(SETTINGS, t_near=0.5), replace(SETTINGS, t_far=1.5))
    ]
    assert overlap[0] < 0.1
    assert min(overlap[1:]) > 0.5
    loaded = loaded_of(Analytic(nothing))
    assert view_consistency(loaded, FACES, views=2).overlap == 0
    assert view_consistency(replace(loaded, settings=replace(SETTINGS, t_far=1.5)), FACES, views=2).overlap > 0.3


def test_overlap_of_a_sphere() -> None:
    """A point p of a sphere is seen by a camera at c where p · c > r², and by both where that holds for both."""
    resolution, yaws = 64, torch.linspace(-0.4, 0.4, 5)
    cameras = Cameras.from_angles(torch.full((5,), FRONT), FRONT + yaws)
    rays = cameras.rays(resolution)
    t = sphere(RADIUS)(rays)
    points = rays.origins + t[..., None] * rays.directions
    both = solid = 0
    for a in range(5):
        hit = t[a] < SETTINGS.t_far - 0.02 * 0.24
        for b in (a - 1, a + 1):
            if 0 <= b < 5:
                both += int((hit & (points[a] @ cameras.position[b] > RADIUS**2)).sum())
                solid += int(hit.sum())
    found = view_consistency(loaded_of(Analytic(sphere(RADIUS)), resolution), FACES)
    # A rim of about a pixel, 4 / 50 of the disc's area, can fall to either side; interpolation at it fails the test.
    assert both / solid - 0.08 < found.overlap <= both / solid + 0.01


def test_contradicting_depths_do_not_overlap() -> None:
    def wrong(rays: Rays) -> Tensor:
        """Right in the front view, 0.05 too near in others."""
        turned = (torch.atan2(rays.origins[..., 2], rays.origins[..., 0]) - FRONT).abs() > 0.1
        return plane()(rays) - 0.05 * turned

    right, found = (view_consistency(loaded_of(Analytic(hit)), FACES, views=3) for hit in (plane(), wrong))
    assert right.overlap > 0.7
    assert found.overlap == 0


def test_perceptual_difference_is_averaged_over_the_overlap() -> None:
    masks = []

    def distance(target: Tensor, pasted: Tensor) -> Tensor:
        masks.append((target != pasted).any(1).float().mean())
        return torch.full_like(target[:, :1], 0.3)

    found = view_consistency(loaded_of(Analytic(sphere(RADIUS))), FACES, distance=distance)
    assert found.perceptual == pytest.approx(0.3)
    assert len(masks) == 8  # four pairs of neighbours, both directions
    assert 0 < max(masks) < found.overlap  # what is not seen in both is the same in both


def test_nothing_to_see() -> None:
    found = view_consistency(loaded_of(Analytic(nothing)), FACES)
    assert math.isnan(found.psnr)
    assert found.overlap == 0


def test_mistakes() -> None:
    with pytest.raises(UserError, match="consistency needs a 3-D model, and Flat is 2-D; choose metrics of images"):
        view_consistency(loaded_of(Flat()), FACES)
    with pytest.raises(ValueError, match="views"):
        view_consistency(loaded_of(Analytic(plane())), FACES, views=1)
    with pytest.raises(ValueError, match="count"):
        view_consistency(loaded_of(Analytic(plane())), FaceSample(0))

"""Warping by depth where the geometry is known."""

from __future__ import annotations

import pytest
import torch
from evaluation.analytic import FRONT, SETTINGS, Analytic, Phases, nearest, plane, sphere
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.evaluation.warping import Warped, warp
from cips3d.models.view import View

PHASES = Phases(torch.tensor([[0.3, 1.0, 2.0]]))


def camera(yaw: float, pitch: float = 0.0) -> Cameras:
    return Cameras.from_angles(torch.tensor([FRONT + pitch]), torch.tensor([FRONT + yaw]))


def warped(
    scene: Analytic, source: Cameras, target: Cameras, resolution: tuple[int, int], tolerance: float = 0.012
) -> tuple[Warped, Tensor, Tensor]:
    """The source's view at the target; the target's own view and its depth."""
    seen, wanted = (scene.render(PHASES, View(resolution, cameras)) for cameras in (source, target))
    assert seen.depth is not None
    assert wanted.depth is not None
    at_target = warp(
        *(seen.image, seen.depth, source, wanted.depth, target),
        t_far=SETTINGS.t_far,
        tolerance=tolerance,
        empty=0.005,
    )
    return at_target, wanted.image, wanted.depth


@pytest.mark.parametrize(("size", "yaw", "pitch"), [((48, 48), 0.2, 0.0), ((40, 56), -0.2, 0.15)])
def test_plane(size: tuple[int, int], yaw: float, pitch: float) -> None:
    """Colours agree up to the interpolation's error, and the visible part is what lies within the picture."""
    source, target = camera(yaw, pitch), camera(0.0)
    found, wanted, depth = warped(Analytic(plane()), source, target, size)
    rays = target.rays(size)
    points = rays.origins + depth.flatten(1)[..., None] * rays.directions
    outermost = torch.tensor([(size[1] - 1) / (size[0] - 1), 1.0])
    inside = (source.project(points).place.abs() <= outermost).all(-1).view(1, 1, *size)
    torch.testing.assert_close(found.visible, inside)
    # Bilinear interpolation errs by at most h²/8 · (|f_xx| + 2 |f_xy| + |f_yy|): the waves' amplitude 0.8 times the
    # square of (60 + 25 + 15 · tan 0.25) phase per unit times the pixel pitch.
    pitch_units = 2 * 0.1051 * 1.1 / (min(size) - 1)
    bound = 0.8 * (90 * pitch_units) ** 2 / 8
    assert float((found.image - wanted).abs().amax(1, keepdim=True)[inside].max()) < bound


@pytest.mark.parametrize("size", [(1, 8), (8, 1), (3, 8), (1, 1)])
def test_onto_itself(size: tuple[int, int]) -> None:
    image, depth = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, *size)
    same = camera(0.0)
    found = warp(image, depth, same, depth, same, t_far=SETTINGS.t_far, tolerance=0.01, empty=0.005)
    torch.testing.assert_close(found.image, image, atol=1e-5, rtol=0)


def test_hidden_surface_is_not_visible() -> None:
    """A plane behind a ball: what the ball hides from the source is not taken from it."""
    centre, radius = (0.0, 0.0, 0.05), 0.03
    scene = Analytic(nearest(plane(-0.04), sphere(radius, centre)))
    source, target, size = camera(0.5), camera(0.0), (96, 96)
    found, wanted, depth = warped(scene, source, target, size)
    rays = target.rays(size)
    points = rays.origins + depth.flatten(1)[..., None] * rays.directions
    on_plane = points[..., 2] < -0.039
    direction = torch.nn.functional.normalize(points - source.position[:, None], dim=-1)
    offset = source.position[:, None] - torch.tensor(centre)
    along = (offset * direction).sum(-1)
    miss = (offset.square().sum(-1) - along.square()).clamp_min(0).sqrt()  # between the ball's centre and the line
    pixel = 2 * 0.1051 / 95
    hidden = (on_plane & (miss < radius - 1.5 * pixel)).view(1, 1, *size)
    free = (on_plane & (miss > radius + 1.5 * pixel)).view(1, 1, *size)
    inside = (source.project(points).place.abs() <= 1).all(-1).view(1, 1, *size)
    assert int((hidden & inside).sum()) > 100
    assert not (found.visible & hidden).any()
    assert (found.visible | ~free | ~inside).all()
    error = (found.image - wanted).abs().amax(1, keepdim=True)
    bound = 0.8 * (90 * 1.1 * pixel) ** 2 / 8  # as in test_plane
    assert float(error[found.visible & free].max()) < bound
    assert float(error[hidden & inside].max()) > 1  # what the test keeps out: colours of the ball


def test_empty_space_is_not_visible() -> None:
    found, _, depth = warped(Analytic(sphere(0.06)), camera(0.2), camera(0.0), (32, 32))
    assert not (found.visible & (depth >= SETTINGS.t_far)).any()
    assert found.visible.any()


def test_sizes_must_agree() -> None:
    images = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="one size"):
        warp(
            *(images, torch.zeros(1, 1, 4, 4), camera(0.0), torch.zeros(1, 1, 5, 5), camera(0.0)),
            t_far=1.12,
            tolerance=0.01,
            empty=0.01,
        )

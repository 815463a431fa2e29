"""Normals of surfaces that are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation.analytic import Analytic, loaded_of, plane, sphere, waves
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.rendering import Look, normals_from_depth, render_pairs

FRONT = math.pi / 2
VIEWS = Cameras.from_angles(torch.tensor([FRONT, 1.3, 1.8]), torch.tensor([FRONT, 1.2, 2.0]), 12.0)
PHASE = torch.zeros(3, 3)


def depth_of(hit: object, cameras: Cameras, resolution: int | tuple[int, int]) -> Tensor:
    generator = Analytic(hit, waves)  # type: ignore[arg-type]
    styles = generator.mapping(PHASE[: len(cameras)])
    depth = render_pairs(loaded_of(generator), styles, cameras, Look(resolution, ("image", "depth"))).depth
    assert depth is not None
    return depth


def angles(normals: Tensor, expected: Tensor) -> Tensor:
    """Degrees between vectors along dim 1."""
    sine = torch.linalg.cross(normals, expected, dim=1).norm(dim=1)
    return torch.rad2deg(torch.atan2(sine, (normals * expected).sum(1)))


@pytest.mark.parametrize("resolution", [(9, 9), (8, 17)], ids=str)
def test_plane(resolution: tuple[int, int]) -> None:
    """Differences within a plane are exact: every pixel's normal is the plane's, in the camera's axes."""
    normals = normals_from_depth(depth_of(plane(0.02), VIEWS, resolution).double(), VIEWS)
    expected = VIEWS.rotation.mT @ torch.tensor([0.0, 0.0, 1.0])  # [B, 3]
    expected = expected.double()[:, :, None, None].expand_as(normals)
    # Depths of 1 have a rounding of 6e-8 over pixels 0.02 apart: 3e-6 radians, twice over, from both neighbours.
    assert angles(normals, expected).max() < 2e-3


def test_sphere() -> None:
    """n = p / r. Differences over 2h on a curve of radius r are wrong by about (h / r)² / 2 / cos³ of the slant."""
    resolution, radius = 129, 0.08
    depth = depth_of(sphere(radius), VIEWS, resolution).double()
    normals = normals_from_depth(depth, VIEWS)
    rays = VIEWS.rays(resolution)
    points = rays.origins + depth.flatten(1)[..., None] * rays.directions
    outward = (points / radius) @ VIEWS.rotation.double()
    outward = outward.mT.reshape_as(normals)
    head_on = ((points.norm(dim=-1) - radius).abs() < 1e-6).view(3, resolution, resolution)
    head_on &= outward[:, 2] > 0.5  # at a slant of up to 60 degrees
    assert head_on.float().mean() > 0.2
    errors = angles(normals, outward)[head_on]
    assert errors.mean() < 0.05
    assert errors.max() < 0.5
    middle = normals[:, :, resolution // 2, resolution // 2]
    assert angles(middle, torch.tensor([[0.0, 0.0, 1.0]]).double().expand(3, 3)).max() < 0.1


def test_sides_have_their_signs() -> None:
    """On a ball: right of the middle normals point right, above it up, and everywhere to the camera."""
    normals = normals_from_depth(depth_of(sphere(0.08), VIEWS[:1], 65), VIEWS[:1])[0]
    assert normals[0, 32, 48] > 0.3 > -0.3 > normals[0, 32, 16]
    assert normals[1, 16, 32] > 0.3 > -0.3 > normals[1, 48, 32]
    directions = VIEWS[:1].rays(65).directions[0] @ VIEWS.rotation[0]
    towards = -(normals.flatten(1).mT * directions).sum(-1)
    assert towards.min() > 0
    torch.testing.assert_close(normals.norm(dim=0), torch.ones(65, 65))


def test_other_distances_and_angles_of_view() -> None:
    cameras = Cameras.from_angles(
        VIEWS.pitch, VIEWS.yaw, torch.tensor([30.0, 8.0, 20.0]), torch.tensor([0.6, 1.5, 1.0])
    )
    cameras = cameras.rolled(torch.tensor([0.3, -1.0, 2.0]))
    normals = normals_from_depth(depth_of(plane(0.02), cameras, 9).double(), cameras)
    expected = (cameras.rotation.mT @ torch.tensor([0.0, 0.0, 1.0])).double()[:, :, None, None].expand_as(normals)
    assert angles(normals, expected).max() < 5e-3


def test_wrong_arguments_are_named() -> None:
    for shape in ((3, 1, 4), (3, 3, 4, 4), (3, 1, 1, 4)):
        with pytest.raises(ValueError, match="depth"):
            normals_from_depth(torch.ones(shape), VIEWS)
    with pytest.raises(ValueError, match="cameras"):
        normals_from_depth(torch.ones(2, 1, 4, 4), VIEWS)

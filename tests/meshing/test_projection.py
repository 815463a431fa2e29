"""Projection is the inverse of rays."""

from __future__ import annotations

import math

import pytest
import torch

from cips3d.cameras import Cameras
from cips3d.meshing.projection import project


def test_points_of_rays_land_on_their_pixels() -> None:
    front = math.pi / 2
    pitch, yaw = torch.tensor([front, 1.2, 2.0]).double(), torch.tensor([front, 2.5, -0.7]).double()
    cameras = Cameras.from_angles(pitch, yaw, torch.tensor([12.0, 30.0, 70.0]).double())
    rays = cameras.rays(5)
    axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
    pixels = torch.stack([axis.repeat(5), -axis.repeat_interleave(5)], dim=1)
    for k in range(3):
        place, depth = project(cameras, rays.origins[k] + 0.9 * rays.directions[k])
        torch.testing.assert_close(place[k], pixels)
        assert depth[k, 12].item() == pytest.approx(0.9)  # the central ray
        assert (depth[k] > 0).all()


def test_behind_the_camera_is_negative() -> None:
    front = torch.tensor([math.pi / 2])
    _, depth = project(Cameras.from_angles(front, front), torch.tensor([[0.0, 0.0, 1.5]]))
    assert depth.item() < 0

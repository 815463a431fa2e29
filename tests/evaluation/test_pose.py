"""Seen poses where the truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cips3d.evaluation.pose import poses_from_front, response_of, train_pose_regressor, yaw_response
from cips3d.models.generator import Generator, GeneratorConfig
from cips3d.models.volume import VolumeSettings


class Spots:
    """A bright spot whose place tells yaw (column) and pitch (row)."""

    resolution = 32

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.yaw, self.pitch = math.pi / 2 + 0.8 * (torch.rand(2, count, generator=generator) - 0.5)
        grid = torch.linspace(-0.5, 0.5, 32)
        across = (grid[None, None] - (self.yaw - math.pi / 2)[:, None, None]) ** 2
        down = (grid[None, :, None] - (self.pitch - math.pi / 2)[:, None, None]) ** 2
        self.images = (255 * torch.exp(-(across + down) / 0.01)).byte()[:, None].expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.yaw)

    def __getitem__(self, index: int, /) -> Tensor:
        return self.images[index]


def test_regressor_learns_poses() -> None:
    regressor = train_pose_regressor(Spots(256, seed=0), steps=120, batch_size=32, progress=False)
    held_out = Spots(64, seed=1)
    with torch.no_grad():
        seen = regressor(held_out.images.float() / 127.5 - 1)
    error = (seen - poses_from_front(held_out)).square().mean().sqrt()
    assert error < 0.08  # the spread of the poses is 0.23


def test_response_of_known_lines() -> None:
    requested = torch.linspace(-0.6, 0.6, 5)
    exact = response_of(requested, torch.stack([requested, requested]))
    assert (exact.slope, exact.correlation) == pytest.approx((1, 1))
    half = response_of(requested, torch.stack([0.5 * requested + 0.1, 0.5 * requested - 0.1]))
    assert half.slope == pytest.approx(0.5)
    assert half.correlation < 1
    assert half.seen == pytest.approx((0.5 * requested).tolist(), abs=1e-6)


def test_response_of_a_generator() -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(z_shape_dim=4, shape_style_dim=4, nerf_width=8, z_appearance_dim=4, inr_width=8)
    regressor = train_pose_regressor(Spots(64, seed=0), steps=2, batch_size=8, progress=False)
    response = yaw_response(Generator(config), regressor, VolumeSettings(samples=4), resolution=16, faces=2, views=3)
    assert response.requested == pytest.approx([-0.6, 0.0, 0.6])
    assert all(math.isfinite(value) for value in (*response.seen, response.slope))

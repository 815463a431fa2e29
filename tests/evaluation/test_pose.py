"""Seen poses where the truth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from evaluation.analytic import FRONT, SETTINGS, Analytic, Flat, loaded_of, plane
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.errors import UserError
from cips3d.evaluation import image_network
from cips3d.evaluation.pose import (
    PoseRegressor,
    pose_accuracy,
    poses_from_front,
    response_of,
    train_pose_regressor,
    yaw_response,
)
from cips3d.evaluation.views import FaceSample


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


def test_pictures_are_roughened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other one loses what is as fine as its pixels, and those come first."""
    monkeypatch.setattr(image_network, "NOISE", 0.0)
    monkeypatch.setattr(image_network, "diff_augment", lambda images, *_, **__: images)
    place = torch.arange(16)
    fine, coarse = (torch.where((place[:, None] // side + place // side) % 2 == 0, 1.0, -1.0) for side in (1, 2))
    batch = torch.stack([fine, coarse, coarse, fine])[:, None].expand(-1, 3, -1, -1)
    rough, order = image_network.roughened(batch, torch.Generator().manual_seed(0))
    assert order.tolist() == [0, 2, 1, 3]
    assert torch.equal(rough[2:], batch[order[2:]])
    torch.testing.assert_close(rough[0], torch.zeros(3, 16, 16))
    assert rough[1].amax() == 1 and rough[1].amin() == -1  # blurred by two pixels, no more


def test_response_of_known_lines() -> None:
    requested = torch.linspace(-0.6, 0.6, 5)
    exact = response_of(requested, torch.stack([requested, requested]))
    assert (exact.slope, exact.correlation) == pytest.approx((1, 1))
    half = response_of(requested, torch.stack([0.5 * requested + 0.1, 0.5 * requested - 0.1]))
    assert half.slope == pytest.approx(0.5)
    assert half.correlation < 1
    assert half.seen == pytest.approx((0.5 * requested).tolist(), abs=1e-6)


def followed(share: float, wobble: float = 0.0) -> Analytic:
    """Pictures whose red tells the yaw and whose green the pitch, times a share; every other face wobbles in pitch."""

    def texture(points: Tensor, phase: Tensor, cameras: Cameras) -> Tensor:
        off = wobble * torch.where(torch.arange(len(phase)) % 2 == 0, 1.0, -1.0)
        angles = [share * (cameras.yaw - FRONT), share * (cameras.pitch - FRONT) + off, torch.zeros(len(phase))]
        return torch.stack(angles, dim=1)[:, None].expand(*points.shape)

    return Analytic(plane(), texture)


class Reader(PoseRegressor):
    """Reads the angles off those pictures."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :2].mean(dim=(2, 3))


@pytest.mark.parametrize("share", [1.0, 0.5, -1.0])
def test_yaw_response_of_pictures_that_follow(share: float) -> None:
    found = yaw_response(followed(share), Reader().eval(), SETTINGS, resolution=32, faces=2)
    assert found.requested == pytest.approx(torch.linspace(-0.6, 0.6, 9).tolist())
    assert found.seen == pytest.approx((share * torch.linspace(-0.6, 0.6, 9)).tolist(), abs=1e-5)
    assert found.slope == pytest.approx(share, abs=1e-5)
    assert found.correlation == pytest.approx(math.copysign(1, share), abs=1e-5)


def test_yaw_response_is_of_the_same_faces_from_every_side() -> None:
    """What tells them apart moves the line and does not tilt it, nor does the pitch; another seed chooses others."""

    def texture(points: Tensor, phase: Tensor, cameras: Cameras) -> Tensor:
        red = 0.5 * (cameras.yaw - FRONT) + 0.1 * phase[:, 0] + (cameras.pitch - FRONT)
        return red[:, None, None].expand(*points.shape)

    generator, options = Analytic(plane(), texture), {"resolution": 32, "faces": 4, "views": 3}
    found, other = (
        yaw_response(generator, Reader().eval(), SETTINGS, largest=0.4, seed=seed, **options) for seed in (7, 8)
    )
    for response in (found, other):
        assert response.requested == pytest.approx([-0.4, 0, 0.4])
        assert [seen - response.seen[1] for seen in response.seen] == pytest.approx([-0.2, 0, 0.2], abs=1e-5)
        assert response.slope == pytest.approx(0.5, abs=1e-5)
        assert 0 < response.correlation < 0.999
    assert abs(found.seen[1] - other.seen[1]) > 1e-3


@pytest.mark.parametrize("share", [1.0, 0.5, -1.0])
def test_accuracy_of_pictures_that_follow(share: float) -> None:
    found = pose_accuracy(loaded_of(followed(share)), Reader().eval(), FaceSample(2), resolution=32)
    assert (found.yaw.slope, found.pitch.slope) == pytest.approx((share, share), abs=1e-5)
    assert (found.yaw.correlation, found.pitch.correlation) == pytest.approx((math.copysign(1, share),) * 2, abs=1e-5)
    assert found.yaw.seen == pytest.approx((share * torch.linspace(-0.6, 0.6, 9)).tolist(), abs=1e-5)
    assert found.pitch.requested == pytest.approx(torch.linspace(-0.3, 0.3, 9).tolist())
    squares = torch.cat([torch.linspace(-0.6, 0.6, 9), torch.linspace(-0.3, 0.3, 9)]).square()
    expected = math.degrees(abs(1 - share) * math.sqrt(float(squares.mean())))
    assert found.error_degrees == pytest.approx(expected, abs=1e-3)


def test_accuracy_counts_the_other_angle_too() -> None:
    found = pose_accuracy(loaded_of(followed(1.0, 0.1)), Reader().eval(), FaceSample(2), resolution=32)
    assert found.error_degrees == pytest.approx(math.degrees(0.1), abs=1e-3)
    assert found.yaw.slope == pytest.approx(1, abs=1e-5)
    assert found.pitch.correlation < 1


@pytest.mark.parametrize("kind", ["gaussian", "spherical_uniform"])
def test_accuracy_is_from_the_model_s_own_front(kind: Any) -> None:
    """Training cameras need not lie around π/2: a model that follows them is as accurate."""
    poses = PoseDistribution(kind, yaw_mean=FRONT + 0.1, pitch_mean=FRONT - 0.1)
    loaded = replace(loaded_of(followed(1.0)), poses=poses)
    found = pose_accuracy(loaded, Reader().eval(), FaceSample(2), resolution=32)
    assert found.error_degrees < 0.05  # the plane ends within the outermost view; the offsets are 8 degrees
    assert found.yaw.seen == pytest.approx(found.yaw.requested, abs=2e-3)


def test_accuracy_needs_cameras() -> None:
    with pytest.raises(ValueError, match="views must be at least 2, got 1"):
        pose_accuracy(loaded_of(Flat()), Reader(), FaceSample(2), resolution=32, views=1)
    with pytest.raises(UserError, match="pose needs a 3-D model"):
        pose_accuracy(loaded_of(Flat()), Reader(), FaceSample(2), resolution=32)

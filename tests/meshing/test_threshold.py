"""The automatic threshold on volumes whose visible surfaces are known."""

from __future__ import annotations

import math

import pytest
import torch
from meshing.analytic import Balls, BallStyles, one_face
from torch import Tensor

from cips3d.cameras import Cameras
from cips3d.errors import UserError
from cips3d.meshing.density import DensityField
from cips3d.meshing.threshold import _first_reach, surface_threshold
from cips3d.models.volume import VolumeSettings

FRONT = torch.full((3,), math.pi / 2)
CAMERAS = Cameras.from_angles(FRONT, FRONT + torch.tensor([-0.4, 0.0, 0.4]))
RADIUS = 0.07


class SolidBall(Balls):
    """One density inside, nothing outside."""

    def density(self, styles: BallStyles, points: Tensor) -> Tensor:
        return self.sharpness * (self.depth_below(points).amax(-1) > 0)


def threshold_of(generator: Balls) -> float:
    return surface_threshold(DensityField(generator, one_face()), CAMERAS, VolumeSettings())


@pytest.mark.parametrize("density", [300.0, 2000.0])
def test_solid_has_half_of_its_density(density: float) -> None:
    """Candidates are 1% apart, and the last of a step's worth of them need not all be equally good."""
    assert threshold_of(SolidBall(sharpness=density)) == pytest.approx(density / 2, rel=0.1)


@pytest.mark.parametrize("slope", [3e3, 1e4, 1e5])
def test_soft_ball_has_its_surface_where_light_is_lost(slope: float) -> None:
    """Density rises by k per length below the surface.

    A ray that meets it at an angle of cosine c loses half of its light at the depth h √c, h = √(2 ln 2 / k), and an
    isosurface at the depth δ is |δ - h √c| / c away along the ray. Rays are evenly spread over the disk, where c has
    the density 2c: the δ with the least mean is h √(median of an even c) = h √½.
    """
    level = threshold_of(Balls(sharpness=slope))
    # Levels within a step, 0.24/191, are equally good, and the best is half of that from their middle at most.
    expected = math.sqrt(math.log(2) / slope)
    assert level / slope == pytest.approx(expected, rel=0.05, abs=0.24 / 191 / 2)


def test_thin_parts_count_too() -> None:
    """A neck that is opaque, though nowhere as dense as the head, must not be lost."""

    class HeadAndNeck(Balls):
        def density(self, styles: BallStyles, points: Tensor) -> Tensor:
            below = self.depth_below(points) > 0
            return torch.where(below[..., 0], 800.0, torch.where(below[..., 1], 100.0, 0.0))

    generator = HeadAndNeck([((0.0, 0.03, 0.0), 0.05), ((0.0, -0.06, 0.0), 0.04)])
    assert 1 < threshold_of(generator) < 100


def test_surfaces_that_rays_enter_and_leave_again() -> None:
    """The first of them counts, whatever comes behind it."""
    values = torch.tensor([[0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 8.0, 0.0], [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    reached, place = _first_reach(values, [1.0, 6.0])
    assert reached.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(place[reached], torch.tensor([0.25, 5.75, 2.0]))


def test_softplus() -> None:
    """Far outside softplus of a steep slope is 0: the same surface as with relu."""
    field = DensityField(Balls(), one_face(), "softplus")
    settings = VolumeSettings(density_activation="softplus")
    assert surface_threshold(field, CAMERAS, settings) == pytest.approx(threshold_of(Balls()), rel=0.05)


def test_too_thin() -> None:
    # 0.14 · 4 is below ln 2 = 0.69
    with pytest.raises(UserError, match="--threshold"):
        threshold_of(SolidBall(sharpness=4.0))


@pytest.mark.parametrize(("t_near", "t_far"), [(0.88, 0.9), (1.1, 1.12)])
def test_what_rays_do_not_reach_is_no_surface(t_near: float, t_far: float) -> None:
    """Before the ball, and behind it."""
    with pytest.raises(UserError, match="--threshold"):
        surface_threshold(DensityField(Balls(), one_face()), CAMERAS, VolumeSettings(t_near=t_near, t_far=t_far))


def test_diverged() -> None:
    with pytest.raises(UserError, match="diverged"):
        threshold_of(Balls(sharpness=math.nan))

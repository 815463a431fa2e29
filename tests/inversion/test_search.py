"""Where inversion begins."""

from __future__ import annotations

import math

import pytest
import torch
from inversion.small_models import painted_ball, small

from cips3d.cameras import PoseDistribution
from cips3d.inversion.objective import Objective, seen_by
from cips3d.inversion.search import FACES, GRID_STEP, pose_grid, search
from cips3d.inversion.style_space import StyleSpace
from cips3d.rendering import LoadedGenerator

FRONT = math.pi / 2


def objective_of(loaded: LoadedGenerator, photo: torch.Tensor) -> Objective:
    return Objective(loaded, StyleSpace.of(loaded.generator), photo, None, 0.0, 0.0)


@pytest.mark.parametrize(
    ("poses", "yaw_end", "pitch_end"),
    [
        # The inner 96% of a normal distribution end at 2.054 standard deviations, those of an even one at 0.96.
        (PoseDistribution(), 2.054 * 0.3, 2.054 * 0.155),
        (PoseDistribution("uniform", yaw_std=0.5, pitch_std=0.4), 0.48, 0.384),
        (PoseDistribution("fixed"), 0.0, 0.0),
    ],
)
def test_grid_spans_the_training_cameras(poses: PoseDistribution, yaw_end: float, pitch_end: float) -> None:
    pitch, yaw = pose_grid(poses)
    for angles, end in ((pitch, pitch_end), (yaw, yaw_end)):
        values = angles.unique() - FRONT
        assert float(values.max()) == pytest.approx(end, abs=0.04)  # quantiles of 4096 draws
        assert float(values.min()) == pytest.approx(-end, abs=0.04)
        if end:
            assert float(values.diff().max()) <= GRID_STEP + 1e-5
    assert len(pitch) == len(pitch.unique()) * len(yaw.unique())


def test_grid_goes_all_around() -> None:
    poses = PoseDistribution("spherical_uniform", yaw_std=math.pi, pitch_mean=math.pi / 4, pitch_std=math.pi / 4)
    pitch, yaw = pose_grid(poses)
    assert float(yaw.max() - yaw.min()) > 1.9 * math.pi
    assert 0 < float(pitch.min()) < float(pitch.max()) < 0.6 * math.pi


@torch.no_grad()
def test_finds_a_camera_of_the_grid() -> None:
    """The mean face from one of the cameras: nothing else looks like it."""
    loaded = painted_ball()
    objective = objective_of(loaded, torch.zeros(1, 3, 8, 8))
    pitches, yaws = pose_grid(loaded.poses)
    true = 11
    zero = tuple(torch.zeros(1, len(basis)) for basis in objective.space.bases)
    styles = objective.space.styles(zero)
    photo = seen_by(loaded, styles, pitches[true : true + 1], yaws[true : true + 1], 8)
    found = search(objective_of(loaded, photo), None, 4, 8, seed=0)
    assert float(found.yaw[0]) == float(yaws[true])
    assert float(found.pitch[0]) == float(pitches[true])
    assert all(float(u[0].abs().max()) == 0 for u in found.coordinates)
    assert len({(float(p), float(y)) for p, y in zip(found.pitch, found.yaw, strict=True)}) == 4  # cameras, not faces


@torch.no_grad()
def test_finds_a_face_where_the_camera_is_known() -> None:
    loaded = painted_ball()
    random = loaded.generator.sample_z(FACES - 1, generator=torch.Generator().manual_seed(6))
    styles = loaded.generator.mapping(*(z[4:5] for z in random))
    angles = (FRONT + 0.1, FRONT - 0.2)
    photo = seen_by(loaded, styles, *(torch.tensor([angle]) for angle in angles), 16)
    objective = objective_of(loaded, photo)
    found = search(objective, angles, 3, 16, seed=6)
    for u, expected in zip(found.coordinates, objective.space.coordinates(styles), strict=True):
        torch.testing.assert_close(u[:1], expected)
    assert found.yaw.tolist() == pytest.approx([angles[1]] * 3)


@torch.no_grad()
def test_two_dimensional_models_have_one_camera() -> None:
    loaded = small("cips")
    found = search(objective_of(loaded, torch.zeros(1, 3, 8, 8)), None, 5, 8, seed=0)
    assert len(found.yaw) == 5
    assert len(found.coordinates[0].unique(dim=0)) == 5

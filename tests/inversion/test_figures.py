"""The loss curve and the comparison."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from inversion.small_models import ONE_CAMERA, own_picture, small
from PIL import Image

from cips3d import pictures
from cips3d.cameras import PoseDistribution
from cips3d.inversion import InversionSettings, Record, invert
from cips3d.inversion.figures import (
    BOTTOM,
    DIFFERENCE_GAIN,
    HEIGHT,
    LEFT,
    LINES,
    RIGHT,
    TOP,
    WIDTH,
    comparison,
    loss_curve,
)
from cips3d.inversion.objective import seen_by
from cips3d.rendering import CameraAngles
from cips3d.rendering.views import VIEW_YAWS

FRONT = math.pi / 2


def places_of(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of a line, without the legend's."""
    pixels = np.asarray(image)
    rows, columns = np.nonzero((pixels == LINES[name]).all(-1))
    inside = rows > TOP - 3
    return columns[inside], rows[inside]


def test_curve_falls_by_decades() -> None:
    """10^0 at the top left to 10^-2 at the bottom right; straight, as the scale is logarithmic."""
    steps = 101
    curve = loss_curve([Record("pose", pixel=10 ** (-2 * k / (steps - 1)), perceptual=0.0) for k in range(steps)])
    assert curve.size == (WIDTH, HEIGHT)
    columns, rows = places_of(curve, "total")
    assert (columns.min(), columns.max()) == pytest.approx((LEFT, WIDTH - RIGHT), abs=2)
    assert (rows.min(), rows.max()) == pytest.approx((TOP, HEIGHT - BOTTOM), abs=2)
    middle = rows[columns == (LEFT + WIDTH - RIGHT) // 2].mean()
    assert middle == pytest.approx((TOP + HEIGHT - BOTTOM) / 2, abs=3)


def test_curve_draws_what_there_is() -> None:
    pose = [Record("pose", 0.5, 0.1, prior=0.01) for _ in range(10)]
    weights = [Record("weights", 0.05, 0.02, locality=0.003) for _ in range(10)]
    curve = loss_curve(pose + weights)
    ends = {name: places_of(curve, name)[0] for name in LINES}
    half = (LEFT + WIDTH - RIGHT) / 2
    assert ends["prior"].max() < half < ends["locality"].min()
    assert ends["pixel"].min() < half < ends["pixel"].max()
    without = loss_curve(pose)
    assert not len(places_of(without, "locality")[0])


@pytest.mark.parametrize(
    "records",
    [
        [Record("pose", 0.5, 0.0)],
        [Record("pose", 0.0, 0.0)] * 3,
        [Record("pose", 0.5, 0.0), Record("pose", math.nan, 0.0), Record("pose", math.inf, 0.0)],
        [Record("pose", 1e-30, 0.0), Record("pose", 1e8, 0.0)] * 500,
    ],
)
def test_curve_of_odd_losses(records: list[Record]) -> None:
    assert loss_curve(records).size == (WIDTH, HEIGHT)


def test_curve_of_nothing() -> None:
    with pytest.raises(ValueError, match="records must hold at least one"):
        loss_curve([])


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("system", ["cips3d", "cips"])
def test_comparison(system: str, tuned: bool) -> None:
    loaded = small(system)
    photo = own_picture(loaded, 3, FRONT, FRONT).flip(1)
    found = invert(loaded, photo, InversionSettings(steps=3, starts=1, tune_steps=3 * tuned))
    shown = comparison(loaded, photo, found)
    cell = 128 + pictures.GAP
    columns, rows = (7 if loaded.generator.is_3d else 3), 1 + tuned
    grid = np.asarray(shown)[-(rows * cell - pictures.GAP) :, -(columns * cell - pictures.GAP) :]
    assert shown.height > len(grid)  # labels
    in_rows = [found.picture] if found.tuned_picture is None else [found.picture, found.tuned_picture]
    for row, picture in enumerate(in_rows):
        difference = (picture[0].clamp(-1, 1) - photo).abs() * DIFFERENCE_GAIN - 1
        for column, expected in enumerate((photo, picture[0], difference)):
            at = grid[row * cell + 8 :: 16, column * cell + 8 :: 16][:8, :8]
            np.testing.assert_array_equal(at, pictures.to_uint8(expected).permute(1, 2, 0).numpy())
    if loaded.generator.is_3d:
        sides = [grid[:128, k * cell : k * cell + 128] for k in (3, 4, 5)]
        assert (sides[0] != sides[1]).any()
        assert (sides[1] != sides[2]).any()
    assert torch.isfinite(found.picture).all()


@pytest.mark.parametrize(
    ("poses", "pitch"),
    [(ONE_CAMERA, FRONT), (PoseDistribution("spherical_uniform", 1.9, 0.0, math.pi / 4, 0.0), math.pi / 3)],
)
def test_sides_are_seen_from_where_training_cameras_stood(poses: PoseDistribution, pitch: float) -> None:
    """Whatever camera has taken the photograph."""
    loaded = replace(small("cips3d"), poses=poses)
    photo = own_picture(loaded, 3, FRONT, FRONT)
    found = invert(loaded, photo, InversionSettings(steps=1, starts=1))
    found = replace(found, camera=CameraAngles(FRONT + 0.5, FRONT - 0.2, 12.0))
    cell, width = 128 + pictures.GAP, 7 * 128 + 6 * pictures.GAP
    grid = np.asarray(comparison(loaded, photo, found))[-128:, -width:].astype(int)
    for column, turn in enumerate(VIEW_YAWS, start=3):
        angles = (torch.tensor([angle]) for angle in (pitch, poses.yaw_mean + turn))
        expected = pictures.to_uint8(seen_by(loaded, found.styles, *angles, 8)[0]).permute(1, 2, 0).numpy()
        shown = grid[8::16, column * cell + 8 :: 16][:, :8]
        assert abs(shown - expected).max() <= 1  # batches of other sizes may round otherwise

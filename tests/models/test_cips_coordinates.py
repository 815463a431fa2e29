"""Where CIPS's pixels lie: on the square, on the cylinder of a panorama, and in windows of both."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from models.cips_formula import picture
from models.small_cips import CAMERAS, EXACT, PANORAMA, SKIP, check_gradients, generator_of, sample_z
from reference_records import relative_l2

from cips3d.models.cips import CIPSConfig, cylinder_coordinates, square_coordinates, window_coordinates
from cips3d.models.style_mapping import WStyles
from cips3d.models.view import View


def test_coordinates_of_the_square() -> None:
    coords = square_coordinates((3, 5))
    assert coords.shape == (1, 2, 3, 5)
    assert torch.equal(coords[0, 0, 1], torch.tensor([-1, -0.5, 0, 0.5, 1]))
    assert torch.equal(coords[0, 1, :, 1], torch.tensor([-1.0, 0, 1]))
    assert torch.equal(square_coordinates(4), square_coordinates((4, 4)))
    assert torch.equal(window_coordinates((7, 9), (2, 3, 4, 5)), square_coordinates((7, 9))[:, :, 2:6, 3:8])


def test_coordinates_of_the_cylinder() -> None:
    coords = cylinder_coordinates(3, 8, dtype=torch.float64)
    assert coords.shape == (1, 3, 3, 8)
    assert torch.allclose(coords[:, :2].square().sum(1), torch.ones(1, 3, 8, dtype=torch.float64))
    assert torch.equal(coords[0, 2, :, 0], torch.tensor([-1.0, 0, 1], dtype=torch.float64))
    angle = torch.atan2(coords[0, 1, 0], coords[0, 0, 0])
    assert torch.allclose(angle, torch.arange(-7, 8, 2, dtype=torch.float64) * math.pi / 8)
    # The step over the seam is a step like any other.
    steps = (coords - coords.roll(1, dims=-1)).square().sum(1).sqrt()
    assert torch.allclose(steps, steps[:, :1, :1].expand_as(steps))
    across = cylinder_coordinates(3, 8, window=(1, -3, 2, 5), dtype=torch.float64)
    assert torch.equal(across, coords.roll(3, dims=-1)[:, :, 1:, :5])


@pytest.mark.parametrize(
    "window", [(-1, 0, 2, 2), (0, 0, 5, 2), (3, 0, 2, 2), (0, 3, 2, 2), (0, 0, 0, 2), (0, -1, 1, 1)]
)
def test_windows_outside_of_the_picture_are_named(window: Any) -> None:
    with pytest.raises(ValueError, match="window must lie within the 4 x 4 pixels"):
        window_coordinates(4, window)


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 0, 5, 2), (0, 0, 1, 0)])
def test_windows_above_or_below_the_panorama_are_named(window: Any) -> None:
    with pytest.raises(ValueError, match="window must have rows within the 4 of the panorama"):
        cylinder_coordinates(4, 9, window=window)


@pytest.mark.parametrize("variant", ["skip", "residual"])
def test_panoramas_are_the_formula(variant: Any) -> None:
    model = generator_of(replace(PANORAMA, variant=variant))
    w = model.mapping(sample_z(1)).w.detach()
    coords = cylinder_coordinates(2, 7, dtype=torch.float64)  # some of these are between the edges of the embedding
    found = model.synthesis(WStyles(w), coords=coords, noise="none").image
    expected = picture(model, w, coords)
    assert relative_l2(found, expected) < EXACT
    check_gradients(model, found, expected)


@pytest.mark.parametrize("train", [False, True])
def test_edges_of_a_panorama_join(train: bool) -> None:
    """Where pixels are small, the step of colours over the seam is a small one among others; on a plane it is not."""

    def seam(config: CIPSConfig) -> tuple[float, float]:
        image = generator_of(config, train=train)(sample_z(), resolution=(4, 1000), noise="none").image
        steps = (image - image.roll(1, dims=-1)).abs().amax((0, 1, 2)) / image.std()
        return steps[0].item(), steps[1:].max().item()

    over_seam, largest = seam(PANORAMA)
    assert over_seam <= largest < 0.1
    over_seam, largest = seam(SKIP)
    assert over_seam > 10 * largest


def test_panoramas_of_training_sample_the_embedding() -> None:
    """Also with as many pixels as it has numbers, since its rows lie elsewhere."""
    trained, evaluated = (
        generator_of(PANORAMA, train=train)(sample_z(), noise="none").image for train in (True, False)
    )
    assert relative_l2(trained, evaluated) < EXACT


def test_panoramas_by_windows() -> None:
    model = generator_of(PANORAMA)
    styles = model.mapping(sample_z())
    whole = model.render(styles, View((5, 9), CAMERAS, jitter=False)).image
    assert whole.shape == (2, 3, 5, 9)
    across = model.render(styles, View((5, 9), CAMERAS, window=(1, 7, 3, 4), jitter=False)).image
    assert relative_l2(across, whole.roll(2, dims=-1)[:, :, 1:4, :4]) < EXACT

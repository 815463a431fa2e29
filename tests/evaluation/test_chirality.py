"""Left and right where the truth is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evaluation.analytic import Analytic, Flat, loaded_of, sphere
from torch import Tensor

from cips3d.cameras import Cameras, PoseDistribution
from cips3d.errors import UserError
from cips3d.evaluation.chirality import (
    ChiralityClassifier,
    chirality,
    chirality_accuracy,
    train_chirality_classifier,
)
from cips3d.evaluation.image_sets import GeneratedImages
from cips3d.evaluation.views import FaceSample

RESOLUTION = 32
FACES = FaceSample(6)


def parted(points: Tensor, phase: Tensor, cameras: Cameras) -> Tensor:
    """A ball, light where x is above a small threshold of its own and dark elsewhere: a parting on one side."""
    light = torch.sigmoid((points[..., :1] - 0.015 - 0.01 * torch.sin(phase[:, None, :1])) / 0.002)
    return (1.6 * light - 0.8).expand(*points.shape)


def balls(mirrored: bool = False) -> Analytic:
    return Analytic(sphere(0.08), parted, mirrored=mirrored)


@pytest.fixture(scope="module")
def classifier() -> ChiralityClassifier:
    loaded = loaded_of(balls(), RESOLUTION)
    wide = PoseDistribution("uniform", yaw_std=0.7, pitch_std=0.2)
    teaching = GeneratedImages(replace(loaded, poses=wide), 256)
    return train_chirality_classifier(teaching, steps=120, batch_size=32, progress=False)


def test_teaching(classifier: ChiralityClassifier) -> None:
    assert chirality_accuracy(classifier, GeneratedImages(loaded_of(balls(), RESOLUTION), 64, seed=1)) > 0.97
    assert not classifier.training


def test_blank_classifier_guesses() -> None:
    """It says the same of a picture and of its mirror image or the opposite by chance; one that always says no is
    right half of the time."""
    blank = ChiralityClassifier().eval()
    with torch.no_grad():
        blank.output.weight.zero_()
        blank.output.bias.fill_(-1)
    assert chirality_accuracy(blank, GeneratedImages(loaded_of(balls(), 8), 16)) == 0.5


def test_faces_of_one_hand(classifier: ChiralityClassifier) -> None:
    found = chirality(loaded_of(balls(), RESOLUTION), classifier, FACES, resolution=RESOLUTION)
    assert found.mirrored < 0.05
    assert found.changes < 0.1
    assert found.yaws == pytest.approx(torch.linspace(-0.6, 0.6, 9).tolist())


def test_mirrored_half_spaces(classifier: ChiralityClassifier) -> None:
    """Right from the left and wrong from the right: four of nine views of a face are mirror images."""
    found = chirality(loaded_of(balls(mirrored=True), RESOLUTION), classifier, FACES, resolution=RESOLUTION)
    assert found.changes > 0.9
    assert found.mirrored == pytest.approx(4 / 9, abs=0.05)
    assert min(found.mirrored_by_yaw[:4]) > 0.8
    assert max(found.mirrored_by_yaw[4:]) < 0.2


class Calling(ChiralityClassifier):
    """Says of every face's views what it is told to."""

    def __init__(self, *calls: bool) -> None:
        super().__init__()
        self.calls = torch.tensor(calls)

    def calls_mirrored(self, images: Tensor) -> Tensor:
        return self.calls.repeat(len(images) // len(self.calls))


@pytest.mark.parametrize(
    ("calls", "changes"),
    [((True, False, False, True), 0.0), ((True, False, True, False), 1.0), ((True, True, True, False, False), 1.0)],
)
def test_pairs_are_of_opposite_angles(calls: tuple[bool, ...], changes: float) -> None:
    """The view from the front, where there is one, belongs to no pair."""
    found = chirality(loaded_of(balls(), 8), Calling(*calls), FaceSample(2), resolution=8, views=len(calls))
    assert found.changes == changes
    assert found.mirrored_by_yaw == [float(call) for call in calls]


def test_pictures_are_resized_for_the_classifier(classifier: ChiralityClassifier) -> None:
    found = chirality(loaded_of(balls(), 80), classifier, FaceSample(2), resolution=RESOLUTION)
    assert found.mirrored < 0.1


def test_one_view_has_no_sides(classifier: ChiralityClassifier) -> None:
    with pytest.raises(ValueError, match="views must be at least 2, got 1"):
        chirality(loaded_of(balls(), RESOLUTION), classifier, FACES, resolution=RESOLUTION, views=1)


def test_2d_models_have_no_sides(classifier: ChiralityClassifier) -> None:
    with pytest.raises(UserError, match="chirality needs a 3-D model"):
        chirality(loaded_of(Flat()), classifier, FACES, resolution=RESOLUTION)

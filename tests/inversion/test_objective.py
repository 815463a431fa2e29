"""What inversion makes small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inversion.small_models import small
from torch import Tensor

from cips3d.cameras import FRONT, Cameras
from cips3d.inversion.objective import Candidates, Objective, seen_by
from cips3d.inversion.style_space import StyleSpace
from cips3d.models.view import View
from cips3d.rendering import LoadedGenerator, styles_of_seeds

ANGLE = torch.full((1,), FRONT)


def objective_of(loaded: LoadedGenerator, photo: Tensor, prior: float = 0.0) -> Objective:
    return Objective(loaded, StyleSpace.of(loaded.generator), photo, None, 0.0, prior)


def test_coarser_photographs_have_the_same_edges() -> None:
    """As pictures of fewer pixels have, whose outer ones are seen along the same rays."""
    ramp = torch.linspace(-1, 1, 9).expand(1, 3, 9, 9)
    objective = objective_of(small("cips3d"), ramp)
    torch.testing.assert_close(objective.photo_at(5), torch.linspace(-1, 1, 5).expand(1, 3, 5, 5))
    assert objective.photo_at(9) is ramp


def test_pictures_have_the_models_angle_of_view() -> None:
    loaded = replace(small("cips3d"), fov_degrees=20.0)
    styles = styles_of_seeds(loaded, [0])
    view = View(8, Cameras.from_angles(ANGLE, ANGLE, 20.0), loaded.settings, jitter=False)
    expected = loaded.generator.render(styles, view).image.clamp(-1, 1)
    torch.testing.assert_close(seen_by(loaded, styles, ANGLE, ANGLE, 8), expected)


def test_prior_of_untypical_faces() -> None:
    """Three times the mean square of both styles' coordinates."""
    objective = objective_of(small("cips3d"), torch.zeros(1, 3, 8, 8), prior=3.0)
    coordinates = tuple(torch.full((1, len(basis)), 2.0) for basis in objective.space.bases)
    loss = objective.prior_loss(Candidates(coordinates, ANGLE, ANGLE))
    assert loss.tolist() == [pytest.approx(3 * (4 + 4))]

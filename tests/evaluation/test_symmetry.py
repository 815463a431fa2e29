"""The mirror symmetry index where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation.analytic import Analytic, Flat, even_waves, loaded_of, sphere

from cips3d.errors import UserError
from cips3d.evaluation.symmetry import mirror_symmetry, symmetry_of
from cips3d.evaluation.views import FaceSample

FACES = FaceSample(4)


def test_symmetric_faces() -> None:
    found = mirror_symmetry(loaded_of(Analytic(sphere(0.08), even_waves)), FACES)
    assert found.index == pytest.approx(1, abs=1e-6)  # float32 colours, squared
    assert found.yaws == [0.15, 0.3, 0.45]
    assert found.by_yaw == pytest.approx([1, 1, 1], abs=1e-6)


def test_mirrored_half_spaces() -> None:
    """A generator with the mirror symmetry problem is symmetric at every yaw, whatever its faces look like."""
    problem = mirror_symmetry(loaded_of(Analytic(sphere(0.08), mirrored=True)), FACES)
    honest = mirror_symmetry(loaded_of(Analytic(sphere(0.08))), FACES)
    assert problem.index == pytest.approx(1, abs=1e-6)
    assert honest.index < 0.5  # waves of another direction are no more alike than those of another face


def test_unrelated_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    at_plus, at_minus = torch.randn(2, 64, 3, 16, 16, generator=generator).unbind(0)
    # Distances of noise in 768 dimensions have a relative deviation of √(2/768); the mean of 64 of them √64 less.
    assert symmetry_of(at_plus, at_minus) == pytest.approx(0, abs=4 * math.sqrt(2 / 768 / 64))


def test_three_faces_by_hand() -> None:
    """Own differences are 1, 0 and 2; the six others are 2, 3, 1, 1, 4 and 3, with a mean square of 40/6."""
    at_plus = torch.tensor([0.0, 2.0, 5.0]).view(3, 1, 1, 1)
    at_minus = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    assert symmetry_of(at_plus, at_minus) == pytest.approx(1 - (5 / 3) / (40 / 6))


def test_half_way() -> None:
    """Unit noise a, b: P = a, flip(M) = (a + b)/√2 differ by 2 - √2 in the mean square, unrelated ones by 2."""
    a, b = torch.randn(2, 200, 3, 16, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
    assert symmetry_of(a, ((a + b) / math.sqrt(2)).flip(-1)) == pytest.approx(1 / math.sqrt(2), abs=0.01)


def test_order_of_faces_matters() -> None:
    pictures = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert symmetry_of(pictures, pictures.flip(-1)) == 1
    assert symmetry_of(pictures, pictures.roll(1, 0).flip(-1)) < 0


def test_identical_faces_cannot_be_told_apart() -> None:
    assert math.isnan(symmetry_of(torch.zeros(3, 3, 4, 4), torch.zeros(3, 3, 4, 4)))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="two faces"):
        symmetry_of(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="yaws"):
        mirror_symmetry(loaded_of(Analytic(sphere(0.08))), FACES, yaws=(0.0,))
    with pytest.raises(UserError, match="symmetry needs a 3-D model"):
        mirror_symmetry(loaded_of(Flat()), FACES)

"""Candidates moved by their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from inversion.small_models import own_picture, small

from cips3d.cameras import FRONT
from cips3d.cameras.poses import PITCH_MARGIN
from cips3d.inversion.descent import Round, descend
from cips3d.inversion.objective import Candidates, Objective
from cips3d.inversion.style_space import StyleSpace


def never() -> bool:
    return False


def test_cameras_keep_clear_of_the_poles() -> None:
    """What one photograph pulls away from a pole, its negative pulls to it, with steps that would go beyond."""
    loaded = small("cips3d")
    photo = own_picture(loaded, 3, FRONT, FRONT)[None]
    space = StyleSpace.of(loaded.generator)
    pitch, yaw = torch.tensor([0.01, math.pi - 0.01]).repeat(4), torch.arange(8.0)
    start = Candidates(tuple(torch.zeros(8, len(basis)) for basis in space.bases), pitch, yaw)
    plan = Round("pose", 8, steps=1, keep=8, coordinate_rate=0.01, angle_rate=0.1)
    objectives = [Objective(loaded, space, target, None, 0.0, 0.0) for target in (photo, -photo)]
    found = torch.cat([descend(objective, start, plan, progress=False, stop=never).pitch for objective in objectives])
    assert (found.min(), found.max()) == pytest.approx((PITCH_MARGIN, math.pi - PITCH_MARGIN), abs=1e-6)


def test_rates_fall_in_the_second_half(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, angle = small("cips3d"), torch.tensor([FRONT])
    space, rates = StyleSpace.of(loaded.generator), []
    start = Candidates(tuple(torch.zeros(1, len(basis)) for basis in space.bases), angle, angle)
    plan = Round("pose", 8, steps=8, keep=1, coordinate_rate=0.2, angle_rate=0.1)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda adam: rates.append([g["lr"] for g in adam.param_groups]))
    descend(Objective(loaded, space, torch.zeros(1, 3, 8, 8), None, 0.0, 0.0), start, plan, progress=False, stop=never)
    assert rates == [pytest.approx([0.2 * share, 0.1 * share]) for share in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)]


@pytest.mark.parametrize(("prior", "kept"), [(0.0, 2.0), (1e3, 0.0)])
def test_the_best_are_those_of_all_losses(prior: float, kept: float) -> None:
    """Of the photograph's own untypical face and the mean one, the prior decides."""
    loaded, angle = small("cips3d"), torch.tensor([FRONT, FRONT])
    space = StyleSpace.of(loaded.generator)
    start = Candidates(tuple(torch.tensor([[0.0], [2.0]]).expand(2, len(b)) for b in space.bases), angle, angle)
    photo = Objective(loaded, space, torch.zeros(1, 3, 8, 8), None, 0.0, 0.0).pictures(start, 8)[1:].detach()
    plan = Round("latent", 8, steps=0, keep=1, coordinate_rate=0.1, angle_rate=0.0)
    found = descend(Objective(loaded, space, photo, None, 0.0, prior), start, plan, progress=False, stop=never)
    assert all((u == kept).all() for u in found.coordinates)


def test_candidates_whose_pictures_are_no_numbers_are_left_behind() -> None:
    loaded, angle = small("cips3d"), torch.tensor([FRONT, FRONT])
    space = StyleSpace.of(loaded.generator)
    start = Candidates(tuple(torch.tensor([[math.nan], [0.5]]).expand(2, len(b)) for b in space.bases), angle, angle)
    objective = Objective(loaded, space, torch.zeros(1, 3, 8, 8), None, 0.0, 0.0)
    plan = Round("pose", 8, steps=2, keep=1, coordinate_rate=0.1, angle_rate=0.1)
    found = descend(objective, start, plan, progress=False, stop=never)
    assert all(math.isfinite(record.total) for record in objective.records)
    assert all(torch.isfinite(u).all() for u in found.coordinates)

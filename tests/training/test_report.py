"""Animations at the end of a run."""

from __future__ import annotations

import torch
from evaluation.analytic import Flat, loaded_of

from cips3d.rendering import render_views, styles_of_seeds
from cips3d.training.report import front_view, interpolation


def test_faces_turn_into_each_other_and_back() -> None:
    loaded = loaded_of(Flat(), 8)
    frames = interpolation(loaded, faces=3, frames=8)
    own, following = (
        render_views(loaded, styles_of_seeds(loaded, range(first, first + 3)), *front_view(loaded), 8).image[:, 0]
        for first in (0, 1)
    )
    assert len(frames) == 8
    torch.testing.assert_close(frames[0], own)
    torch.testing.assert_close(frames[4], following)
    torch.testing.assert_close(frames[1], frames[7])
    assert (frames[1] - own).abs().mean() < (frames[2] - own).abs().mean() / 2  # slow at both ends: 0.156 to 0.5

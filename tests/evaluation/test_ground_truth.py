"""Synthetic heads as a generator."""

from __future__ import annotations

import pytest
import torch

from cips3d.cameras import Cameras
from cips3d.data.heads import render_heads
from cips3d.evaluation.consistency import view_consistency
from cips3d.evaluation.ground_truth import HEADS, GroundTruthHeads, HeadStyles, ground_truth_heads
from cips3d.evaluation.symmetry import mirror_symmetry
from cips3d.evaluation.views import FaceSample
from cips3d.models.view import View
from cips3d.models.volume import VolumeSettings

FRONT = torch.full((2,), torch.pi / 2)


def test_pictures_are_the_heads() -> None:
    heads = GroundTruthHeads()
    styles = HeadStyles(torch.tensor([3, 900]))
    cameras = Cameras.from_angles(FRONT, FRONT + 0.3)
    seen = heads.render(styles, View(16, cameras, VolumeSettings(t_far=1.3)))
    truth = render_heads(heads.heads[styles.head], cameras, 16)
    assert torch.equal(((seen.image + 1) * 127.5).round().to(torch.uint8), truth.images)
    assert seen.depth is not None
    assert torch.equal(seen.depth[:, 0] < 1.3, truth.mask >= 0.5)
    assert torch.equal(seen.depth[:, 0][truth.mask >= 0.5], truth.depth[truth.mask >= 0.5])


def test_every_head_is_equally_likely() -> None:
    heads = GroundTruthHeads()
    (z,) = heads.sample_z(20_000, generator=torch.Generator().manual_seed(0))
    chosen = heads.mapping(z).head
    assert int(chosen.min()) >= 0
    assert int(chosen.max()) < HEADS
    counts = torch.bincount(chosen, minlength=HEADS).float()
    assert float(counts.mean()) == pytest.approx(20_000 / HEADS)
    assert float(counts.var()) == pytest.approx(20_000 / HEADS, rel=0.2)  # Poisson's, ± √(2/1024)


def test_measures_of_what_is_right() -> None:
    """Heads are 3-D and lopsided; at 32² what interpolation costs is most of what is left."""
    loaded = ground_truth_heads(32)
    found = view_consistency(loaded, FaceSample(2), views=3)
    assert found.psnr > 22
    assert found.overlap > 0.75
    assert 0.4 < mirror_symmetry(loaded, FaceSample(4), yaws=(0.3,)).index < 0.97


def test_only_whole_squares() -> None:
    with pytest.raises(ValueError, match="square"):
        GroundTruthHeads().render(HeadStyles(torch.tensor([0, 1])), View((8, 9), Cameras.from_angles(FRONT, FRONT)))

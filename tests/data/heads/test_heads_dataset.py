"""Synthetic heads in the cache: what they depend on, and what is trusted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cips3d.cameras import PoseDistribution
from cips3d.data.heads import load_heads
from cips3d.data.heads import dataset as module
from cips3d.data.source import open_training_source
from cips3d.errors import UserError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)


def test_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    small, large = (load_heads(16, count, cache=tmp_path, progress=False) for count in (3, 6))
    assert len(small) == 3 and len(large) == 6
    for i in range(3):
        assert torch.equal(small[i], large[i])
        assert torch.equal(small.depth(i), large.depth(i))
    assert torch.equal(small.yaw, large.yaw[:3])


def test_what_a_head_depends_on(tmp_path: Path) -> None:
    first = load_heads(16, 4, cache=tmp_path, progress=False)
    again = load_heads(16, 4, cache=tmp_path / "elsewhere", progress=False)
    other = load_heads(16, 4, seed=1, cache=tmp_path, progress=False)
    turned = load_heads(16, 4, cache=tmp_path, poses=PoseDistribution("uniform", yaw_std=1.0), progress=False)
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    assert not torch.equal(first.yaw, turned.yaw)
    assert len(list(tmp_path.glob("heads-*"))) == 3


def test_contents(tmp_path: Path) -> None:
    heads = load_heads(24, 4, cache=tmp_path, progress=False)
    assert heads[0].shape == (3, 24, 24) and heads[0].dtype == torch.uint8
    for i in range(4):
        depth, mask = heads.depth(i), heads.mask(i)
        assert 0.1 < mask.mean() < 0.9
        inside = depth[mask == 1]
        assert inside.min() > 0.88 and inside.max() < 1.12  # the range that training samples
        assert (depth[mask == 0] == 0).all()
    assert "4 synthetic heads" in heads.report()


def test_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_heads(16, 4, cache=tmp_path, progress=False)
    monkeypatch.setattr(module, "render_block", None)  # rendering again would fail
    assert np.array_equal(load_heads(16, 4, cache=tmp_path, progress=False).images, first.images)


def test_interrupted_making_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.render_block

    def interrupted(resolution: int, seed: int, block: int, poses: PoseDistribution) -> dict[str, torch.Tensor]:
        if block == 1:
            raise KeyboardInterrupt
        return original(resolution, seed, block, poses)

    with monkeypatch.context() as patch:
        patch.setattr(module, "render_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_heads(16, 8, cache=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_incomplete_folder_is_not_trusted(tmp_path: Path) -> None:
    heads = load_heads(16, 4, cache=tmp_path, progress=False)
    (heads.folder / module.DESCRIPTION).unlink()
    np.save(heads.folder / "images.npy", np.zeros((4, 3, 16, 16), dtype=np.uint8))
    again = load_heads(16, 4, cache=tmp_path, progress=False)
    assert again.images.max() > 0


def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes the same set while this one renders: both go on with it."""
    original = module._render_into

    def overtaken(folder: Path, *arguments: object) -> None:
        original(folder, *arguments)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(module, "_render_into", original)
            load_heads(16, 4, cache=tmp_path, progress=False)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_render_into", overtaken)
        assert len(load_heads(16, 4, cache=tmp_path, progress=False)) == 4
    assert len(list(tmp_path.iterdir())) == 1


def test_cache_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "here"))
    source = open_training_source(None, 16, heads=4)
    assert len(source) == 4
    assert list((tmp_path / "here").iterdir())


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match="CIPS3D_CACHE"):
        load_heads(16, 4, cache=blocked / "cache", progress=False)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("resolution", "count"), [(1, 4), (16, 0)])
def test_impossible_sizes(tmp_path: Path, resolution: int, count: int) -> None:
    with pytest.raises(UserError, match="give"):
        load_heads(resolution, count, cache=tmp_path, progress=False)

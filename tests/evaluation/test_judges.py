"""Networks that are taught once and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cips3d.cameras import PoseDistribution
from cips3d.data.heads import SyntheticHeads, load_heads
from cips3d.evaluation.chirality import ChiralityClassifier
from cips3d.evaluation.image_network import ImageNetwork, seeded
from cips3d.evaluation.judges import Teaching, chirality_judge, judge_resolution, pose_judge
from cips3d.evaluation.pose import PoseRegressor

TEACHING = Teaching(heads=64, held_out=64, steps=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(("model", "judge"), [(8, 32), (32, 32), (63, 32), (64, 64), (256, 64)])
def test_resolutions(model: int, judge: int) -> None:
    assert judge_resolution(model) == judge


def test_pose_judge(cache: Path) -> None:
    judge = pose_judge(16, teaching=TEACHING, cache=cache)
    assert judge.resolution == 32
    assert 0 < judge.quality < 60  # degrees: the spread of the held-out poses is 22
    assert not judge.network.training


@pytest.mark.parametrize("judge", [pose_judge, chirality_judge])
def test_global_random_numbers_are_left_alone(
    judge: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeds.append)
    before = torch.get_rng_state()
    for _ in ("taught", "kept"):
        judge(32, teaching=Teaching(heads=8, held_out=4, steps=1), cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeds


def test_judges_are_examined_on_other_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that taught them nor those of training, from where generators are asked to show theirs."""
    asked: list[tuple[int, int, float]] = []

    def loaded(side: int, count: int, seed: int, *, poses: PoseDistribution, **options: Any) -> SyntheticHeads:
        asked.append((count, seed, poses.yaw_std))
        return load_heads(side, count, seed, poses=poses, **options)

    monkeypatch.setattr("cips3d.evaluation.judges.load_heads", loaded)
    pose_judge(32, teaching=Teaching(heads=8, held_out=4, steps=1), cache=tmp_path)
    assert asked == [(8, 2000, 0.9), (4, 3000, 0.6)]


@pytest.mark.parametrize("judge", [pose_judge, chirality_judge])
def test_judges_know_heads_as_the_model_s_lens_shows_them(
    judge: Callable[..., object], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = load_heads(32, 8, cache=cache, progress=False)
    asked: list[float] = []

    def loaded(*_: object, fov_degrees: float, **others: object) -> SyntheticHeads:
        asked.append(fov_degrees)
        return heads

    monkeypatch.setattr("cips3d.evaluation.judges.load_heads", loaded)
    teaching = Teaching(heads=8, held_out=8, steps=1)
    for lens in ({}, {"fov_degrees": 12.0}, {"fov_degrees": 20.0}, {"fov_degrees": 20.0}):
        judge(32, teaching=teaching, cache=tmp_path, **lens)
    assert asked == [12.0, 12.0, 20.0, 20.0]  # to learn from and to be examined on, of two judges
    assert len(list((tmp_path / "judges").iterdir())) == 2


@pytest.mark.parametrize("network", [PoseRegressor, ChiralityClassifier])
def test_first_weights_are_those_of_the_seed(network: type[ImageNetwork]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = network()
    found = seeded(network, 3)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_chirality_judge_is_taught_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = chirality_judge(32, teaching=TEACHING, cache=cache)
    assert 0 <= first.quality <= 1

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("taught again")

    monkeypatch.setattr("cips3d.evaluation.judges.train_chirality_classifier", fail)
    torch.manual_seed(5)
    second = chirality_judge(16, teaching=TEACHING, cache=cache)
    assert second.quality == first.quality
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True))
    assert not second.network.training
    with pytest.raises(AssertionError, match="taught again"):
        chirality_judge(32, teaching=Teaching(heads=64, held_out=64, steps=3), cache=cache)
    (kept,) = (cache / "judges").glob("chirality-*")
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(AssertionError, match="taught again"):
        chirality_judge(32, teaching=TEACHING, cache=cache)

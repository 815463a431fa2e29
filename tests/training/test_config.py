"""Configurations: JSON, flags that shape the stages, checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cips3d.errors import UserError
from cips3d.training.config import TrainConfig
from cips3d.training.presets import PRESETS, preset
from cips3d.training.presets.cips3d import FFHQ, TINY
from cips3d.training.resolving import resolved


@pytest.mark.parametrize("name", list(PRESETS))
def test_json_round_trip(name: str) -> None:
    config = replace(PRESETS[name], out=Path("somewhere"), data="photos")
    assert TrainConfig.from_json(config.to_json()) == config


def test_json_with_unknown_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        TrainConfig.from_json('{"colour": 1}')


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_can_be_trained(name: str) -> None:
    assert resolved(PRESETS[name]).total_steps > 0


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"--preset tyny .* tiny, heads64, ffhq, afhq, finetune"):
        preset("tyny")


def test_published_schedule() -> None:
    # CIPS-3D: 32² (80 k) → 64² (200 k) → 128² (800 k) → 256² (800 k) and their learning rates of G / D.
    assert [(s.resolution, s.steps) for s in FFHQ.stages] == [
        (32, 80_000),
        (64, 200_000),
        (128, 800_000),
        (256, 800_000),
    ]
    rates = [(s.lr_inr, s.lr_discriminator) for s in FFHQ.stages]
    assert rates == [(2e-4, 2e-3), (2e-4, 2e-3), (1e-4, 1e-3), (1e-4, 5e-4)]
    assert [s.freeze_nerf for s in FFHQ.stages] == [False, False, False, True]
    assert [s.aux_weight for s in FFHQ.stages] == [1, 1, 1, 0]
    assert FFHQ.generator == TrainConfig().generator


def test_resolution_leaves_out_later_stages() -> None:
    stages = resolved(replace(FFHQ, resolution=64)).stages
    assert [s.resolution for s in stages] == [32, 64]


def test_resolution_moves_a_single_stage() -> None:
    assert [s.resolution for s in resolved(replace(TINY, resolution=64)).stages] == [64]
    assert [s.resolution for s in resolved(replace(TINY, resolution=16)).stages] == [16]


@pytest.mark.parametrize("steps", [1, 80_000, 80_001, 5_000_000])
def test_steps_cut_or_stretch(steps: int) -> None:
    config = resolved(replace(FFHQ, steps=steps))
    assert config.total_steps == steps
    assert all(stage.steps > 0 for stage in config.stages)


def test_resolving_twice_changes_nothing() -> None:
    once = resolved(replace(FFHQ, steps=90_000, batch_size=16, resolution=64))
    assert resolved(once) == once
    assert {stage.batch_size for stage in once.stages} == {16}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resolution": 48}, "--resolution 48"),
        ({"resolution": 4}, "--resolution 4"),
        ({"steps": 0}, "--steps 0"),
        ({"batch_size": 0}, "--batch-size 0"),
    ],
)
def test_impossible_values_are_named(change: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolved(replace(TINY, **change))


def test_pose_loss_needs_predicted_poses() -> None:
    with pytest.raises(UserError, match=r"--discriminator\.predict-pose"):
        resolved(replace(TINY, discriminator=replace(TINY.discriminator, predict_pose=False)))


def test_accumulation_must_divide_the_batch() -> None:
    stage = replace(TINY.stages[0], accumulation=3)
    with pytest.raises(UserError, match="multiple"):
        resolved(replace(TINY, reuse_fakes=False, stages=(stage,)))
    with pytest.raises(UserError, match="--no-reuse-fakes"):
        resolved(replace(TINY, stages=(replace(stage, accumulation=2),)))

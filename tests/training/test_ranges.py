"""Numbers that make no sense are refused before anything is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cips3d.errors import UserError
from cips3d.files import is_disk_full
from cips3d.training.config import TrainConfig
from cips3d.training.loop import train
from cips3d.training.presets import PRESETS
from cips3d.training.ranges import check_ranges


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": -1}, "--workers -1 makes no sense; give 0 or more"),
        ({"seed": -1}, "--seed -1"),
        ({"r1_every": 0}, "--r1-every 0 makes no sense; give 1 or more"),
        ({"adam_betas": (1.0, 0.5)}, "--adam-betas 1"),
        ({"ema_decay": 2.0}, "--ema-decay 2 makes no sense; give a number from 0 to 1"),
        ({"ema_decay": float("nan")}, "--ema-decay nan"),
        ({"top_k": 0.0}, "--top-k 0"),
        ({"cooldown": 2.0}, "--cooldown 2"),
        ({"fov_degrees": 0.0}, "--fov-degrees 0"),
        ({"lr_nerf": -1.0}, r"--stages\.0\.lr-nerf -1"),
        ({"lr_inr": float("inf")}, r"--stages\.0\.lr-inr inf"),
    ],
)
def test_what_makes_no_sense(small_config: TrainConfig, change: dict[str, Any], words: str) -> None:
    if "lr" in next(iter(change)):
        change = {"stages": (replace(small_config.stages[0], **change),)}
    with pytest.raises(UserError, match=words):
        train(replace(small_config, **change))
    assert small_config.out is not None and not small_config.out.exists()


def test_presets_make_sense() -> None:
    for config in PRESETS.values() if isinstance(PRESETS, dict) else PRESETS:
        check_ranges(config)


def test_a_disk_that_is_full_while_a_checkpoint_is_written() -> None:
    """As torch says it, in two ways."""
    assert is_disk_full(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2408192 vs 2408084"))
    assert is_disk_full(RuntimeError("PytorchStreamWriter failed writing file data/0"))
    assert not is_disk_full(RuntimeError("another"))

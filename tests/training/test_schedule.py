"""What changes with the step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cips3d.training.config import TrainConfig
from cips3d.training.presets.cips3d import FFHQ
from cips3d.training.schedule import plan_at


def test_stages_follow_each_other() -> None:
    assert [plan_at(FFHQ, step).stage_index for step in (0, 79_999, 80_000, 279_999, 280_000, 10_000_000)] == [
        0,
        0,
        1,
        1,
        2,
        3,
    ]


def test_new_blocks_fade_in() -> None:
    assert plan_at(FFHQ, 0).fade == 1.0  # nothing fades in the first stage
    assert plan_at(FFHQ, 80_000).fade == 0.0
    assert plan_at(FFHQ, 82_500).fade == pytest.approx(0.25)
    assert plan_at(FFHQ, 90_000).fade == 1.0


def test_density_noise_fades_out() -> None:
    # CIPS-3D: N(0, 1) · max(0, 1 - step / 5000).
    assert plan_at(FFHQ, 0).density_noise == 1.0
    assert plan_at(FFHQ, 1250).density_noise == pytest.approx(0.75)
    assert plan_at(FFHQ, 5000).density_noise == 0.0
    assert plan_at(replace(FFHQ, density_noise_steps=2500), 1250).density_noise == pytest.approx(0.5)
    assert plan_at(FFHQ, 79_999).density_noise == 0.0
    assert plan_at(FFHQ, 81_250).density_noise == pytest.approx(0.75)  # anew in every stage
    assert plan_at(replace(FFHQ, density_noise_restarts=False), 81_250).density_noise == 0.0
    assert plan_at(FFHQ, 1_080_000).density_noise == 0.0  # none at 256²


def test_lazy_r1() -> None:
    config = replace(FFHQ, r1_every=4)
    assert [plan_at(config, step).r1_due for step in range(6)] == [True, False, False, False, True, False]
    assert not plan_at(replace(FFHQ, r1_gamma=0.0), 0).r1_due


def test_lazy_path_lengths() -> None:
    config = replace(FFHQ, path_length_weight=2.0, path_length_every=3)
    assert [plan_at(config, step).path_length_due for step in range(5)] == [True, False, False, True, False]
    assert not plan_at(replace(config, path_length_weight=0.0), 0).path_length_due


def test_cooldown_is_linear_at_the_end(small_config: TrainConfig) -> None:
    stage = replace(small_config.stages[0], steps=100)
    config = replace(small_config, stages=(stage,), cooldown=0.2)
    rates = [plan_at(config, step).rate for step in (0, 80, 90, 99)]
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.05])

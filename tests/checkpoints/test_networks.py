"""What is read of files with networks: the model and how its pictures are taken, not how it was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints.small_runs import STEP, write_checkpoint

from cips3d.checkpoints.networks import load_networks
from cips3d.errors import UserError
from cips3d.training.config import TrainConfig
from cips3d.training.presets import PRESETS


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_run_of_every_preset(name: str, small_config: TrainConfig, tmp_path: Path) -> None:
    config = PRESETS[name]
    write_checkpoint(tmp_path / "a.pt", small_config, config=config.to_json())
    networks = load_networks(tmp_path / "a.pt")
    assert networks.generator_config == config.generator
    assert networks.discriminator_config == config.discriminator
    assert networks.rendering.volume == config.volume
    assert networks.rendering.fov_degrees == config.fov_degrees
    assert networks.rendering.poses == config.poses
    assert networks.rendering.resolution == config.stages[-1].resolution
    assert networks.step == STEP


def test_how_a_model_was_trained_may_be_of_another_version(small_config: TrainConfig, tmp_path: Path) -> None:
    plain = json.loads(small_config.to_json())
    plain["loss"] = plain["a_setting_to_come"] = "another"
    write_checkpoint(tmp_path / "a.pt", small_config, config=json.dumps(plain))
    assert load_networks(tmp_path / "a.pt").generator_config == small_config.generator


@pytest.mark.parametrize("part", ["generator", "discriminator", "volume", "poses"])
def test_what_a_model_is_must_be_known(part: str, small_config: TrainConfig, tmp_path: Path) -> None:
    plain = json.loads(small_config.to_json())
    plain[part]["layers_to_come"] = 3
    write_checkpoint(tmp_path / "a.pt", small_config, config=json.dumps(plain))
    with pytest.raises(UserError, match=r"a\.pt does not describe a model of this version .*layers_to_come"):
        load_networks(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inr_width": [1]}, r"a\.pt does not describe a model of this version"),
        ({"rgb_init": 10**400}, r"a\.pt does not describe a model of this version"),
        ({"inr_width": 2**20}, r"the weights in .*a\.pt do not fit the networks it describes"),
    ],
)
def test_what_no_model_is(changes: dict[str, object], message: str, small_config: TrainConfig, tmp_path: Path) -> None:
    plain = json.loads(small_config.to_json())
    plain["generator"].update(changes)
    write_checkpoint(tmp_path / "a.pt", small_config, config=json.dumps(plain))
    with pytest.raises(UserError, match=message):
        load_networks(tmp_path / "a.pt").generator()


def test_weights_that_are_no_state(small_config: TrainConfig, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt", small_config, generator_ema=[torch.zeros(1)])
    with pytest.raises(UserError, match="do not fit the networks it describes"):
        load_networks(tmp_path / "a.pt").generator()

"""Trained generators from files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from checkpoints.small_runs import STEP, write_checkpoint

from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3D
from cips3d.rendering import LoadedGenerator, load_generator
from cips3d.training.config import TrainConfig


def test_folder_and_file_give_the_same(run_folder: Path, small_config: TrainConfig) -> None:
    by_folder = load_generator(str(run_folder))
    by_file = load_generator(run_folder / "checkpoints" / f"step-{STEP:08d}.pt")
    weights, same = (each.generator.state_dict() for each in (by_folder, by_file))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert by_folder.step == STEP
    assert by_folder.resolution == 8
    assert by_folder.settings == small_config.volume
    assert by_folder.poses == small_config.poses
    assert by_folder.fov_degrees == small_config.fov_degrees


def test_is_ready_to_render(loaded: LoadedGenerator) -> None:
    assert not loaded.generator.training
    assert not any(p.requires_grad for p in loaded.generator.parameters())


def test_devices_by_name(run_folder: Path) -> None:
    assert load_generator(run_folder, "cpu").generator.device == torch.device("cpu")
    with pytest.raises(UserError, match="gpu is not a device; give auto, cpu, cuda or cuda:N"):
        load_generator(run_folder, "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="cuda:1 asks for a GPU and none is usable here"):
            load_generator(run_folder, torch.device("cuda", 1))


def test_newest_checkpoint_is_taken(run_folder: Path, small_config: TrainConfig) -> None:
    write_checkpoint(run_folder / "checkpoints" / "step-00009000.pt", small_config, step=9000)
    assert load_generator(run_folder).step == 9000


@pytest.mark.parametrize("config", ["{", "{}", '{"no_such_field": 1}', "[]"])
def test_configuration_of_another_version(tmp_path: Path, small_config: TrainConfig, config: str) -> None:
    write_checkpoint(tmp_path / "a.pt", small_config, config=config)
    with pytest.raises(UserError, match=r"a\.pt does not describe a model"):
        load_generator(tmp_path / "a.pt")


def test_weights_of_another_network(tmp_path: Path, small_config: TrainConfig) -> None:
    other = dataclasses.replace(small_config.generator, inr_width=16)
    write_checkpoint(tmp_path / "a.pt", small_config, generator_ema=CIPS3D(other).state_dict())
    with pytest.raises(UserError, match=r"weights in .*a\.pt do not fit"):
        load_generator(tmp_path / "a.pt")

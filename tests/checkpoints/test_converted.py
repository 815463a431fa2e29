"""Converted checkpoints whose parts do not go together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cips3d.cameras import PoseDistribution
from cips3d.checkpoints.converted import Converted, read_converted, write_converted
from cips3d.checkpoints.networks import load_networks
from cips3d.checkpoints.rendering_settings import RenderingSettings
from cips3d.errors import UserError
from cips3d.models.volume import VolumeSettings

RENDERING = RenderingSettings(VolumeSettings(), 12.0, 8, PoseDistribution())


def state(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2,), value)}


@pytest.mark.parametrize(
    ("configs", "parts"),
    [((None, None), ("generator",)), (({}, None), ()), (({}, None), ("generator_ema", "discriminator"))],
)
def test_weights_need_their_configuration_and_the_other_way_round(
    tmp_path: Path, configs: tuple[dict | None, dict | None], parts: tuple[str, ...]
) -> None:
    path = tmp_path / "a.safetensors"
    write_converted(path, Converted("cips3d", RENDERING, (), *configs, states={part: state() for part in parts}))
    with pytest.raises(UserError, match="not a complete converted checkpoint"):
        read_converted(path)


def test_a_discriminator_alone_makes_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_converted(path, Converted("cips3d", RENDERING, (), None, {}, states={"discriminator": state()}))
    with pytest.raises(UserError, match="holds no generator; convert the generator's file"):
        load_networks(path)


def test_configurations_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    config = {"layers_to_come": 3}
    write_converted(path, Converted("cips3d", RENDERING, (), config, None, states={"generator": state()}))
    with pytest.raises(UserError, match=r"does not describe a model of this version .*layers_to_come.*convert it once"):
        load_networks(path)


def test_the_averaged_generator_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    states = {"generator": state(), "generator_ema": state(1.0)}
    write_converted(path, Converted("cips3d", RENDERING, (), {}, None, step=4, states=states))
    converted = read_converted(path)
    assert converted.generator_state is not None and converted.step == 4
    assert torch.equal(converted.generator_state["weight"], torch.ones(2))

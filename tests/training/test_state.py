"""What a run is made of: where it comes from, and what of it a checkpoint keeps."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from cips3d.checkpoints.networks import Networks
from cips3d.checkpoints.rendering_settings import RenderingSettings
from cips3d.errors import UserError
from cips3d.training.config import Amp, TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.measuring import Best
from cips3d.training.state import TrainingState


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def test_the_seed_chooses_weights_and_draws(small_config: TrainConfig) -> None:
    first, same, other = (TrainingState(replace(small_config, seed=seed), Processes()) for seed in (3, 3, 4))
    for name in ("generator", "discriminator"):
        assert torch.equal(weights(getattr(first, name)), weights(getattr(same, name))), name
        assert not torch.equal(weights(getattr(first, name)), weights(getattr(other, name))), name
    assert torch.equal(first.random.get_state(), same.random.get_state())
    assert not torch.equal(first.random.get_state(), other.random.get_state())


def test_every_network_has_its_learning_rate(small_config: TrainConfig) -> None:
    stage = replace(small_config.stages[0], lr_nerf=1.0, lr_inr=2.0, lr_mapping=3.0, lr_discriminator=4.0)
    state = TrainingState(small_config, Processes())
    state.set_learning_rates(stage, 0.5)
    rates = {id(p): group["lr"] for group in state.optimizer_g.param_groups for p in group["params"]}
    expected = {"nerf": 0.5, "aux_to_rgb": 0.5, "inr": 1.0, "shape_mapping": 1.5, "appearance_mapping": 1.5}
    for name, parameter in state.generator.named_parameters():
        assert rates[id(parameter)] == expected[name.partition(".")[0]], name
    assert {group["lr"] for group in state.optimizer_d.param_groups} == {2.0}


def test_what_a_run_has_counted_goes_on(small_config: TrainConfig) -> None:
    config = replace(small_config, amp=Amp(discriminator="fp16"))
    content = TrainingState(config, Processes()).state_dict()
    for name, scale in (("scaler_g", 8.0), ("scaler_d", 4.0)):
        content[name] = {**content[name], "scale": scale}
    again = TrainingState(config, Processes())
    again.load_state_dict({**content, "step": 5, "skipped": 3, "position": 20})
    assert (again.scaler_g.get_scale(), again.scaler_d.get_scale()) == (8.0, 4.0)
    assert (again.step, again.skipped, again.position) == (5, 3, 20)


def test_the_best_of_a_run_stays_the_best(small_config: TrainConfig) -> None:
    content = TrainingState(small_config, Processes()).state_dict()
    again = TrainingState(small_config, Processes())
    again.load_state_dict({**content, "best": asdict(Best("frechet", 8, 4, 1.5))})
    assert again.best == Best("frechet", 8, 4, 1.5)
    again.load_state_dict(content)
    assert again.best is None


def test_a_checkpoint_that_does_not_say_what_was_reported(small_config: TrainConfig) -> None:
    """Of an older version: what was due then is not made once more, but for what comes before the first step."""
    content = TrainingState(small_config, Processes()).state_dict()
    del content["reported"]
    again = TrainingState(small_config, Processes())
    for step, position, reported in ((5, 20, 20), (0, 0, -1)):
        again.load_state_dict({**content, "step": step, "position": position})
        assert again.reported == reported


@pytest.mark.parametrize(
    ("name", "value"), [("step", "five"), ("position", None), ("best", {"kind": 1}), ("random", None), ("ada", [])]
)
def test_a_checkpoint_with_other_things_in_it(small_config: TrainConfig, name: str, value: object) -> None:
    config = replace(small_config, ada_target=0.5)
    content = TrainingState(config, Processes()).state_dict()
    with pytest.raises(UserError, match="the checkpoint was written by another version of cips3d, or changed since"):
        TrainingState(config, Processes()).load_state_dict({**content, name: value})


@pytest.mark.parametrize(("target", "p"), [(0.5, 0.75), (0.0, 0.0)])
def test_adaptive_augmentation_goes_on_or_is_switched_off(small_config: TrainConfig, target: float, p: float) -> None:
    state = TrainingState(replace(small_config, ada_target=0.6), Processes())
    state.ada.p = 0.75
    again = TrainingState(replace(small_config, ada_target=target), Processes())
    again.load_state_dict(state.state_dict())
    assert again.ada.p == p


def test_random_numbers_go_on(small_config: TrainConfig) -> None:
    state = TrainingState(small_config, Processes())
    content = state.state_dict()
    expected = torch.rand(4), torch.rand(4, generator=state.random)
    again = TrainingState(replace(small_config, seed=small_config.seed + 1), Processes())
    again.load_state_dict(content)
    assert torch.equal(torch.rand(4), expected[0])
    assert torch.equal(torch.rand(4, generator=again.random), expected[1])


def test_random_numbers_of_another_device_begin_anew(small_config: TrainConfig) -> None:
    """None that the first steps drew comes once more."""
    state = TrainingState(small_config, Processes())
    content = state.state_dict()
    elsewhere = {**content["random"][0], "draws": torch.zeros(16, dtype=torch.uint8), "cuda": torch.zeros(16)}
    again = TrainingState(small_config, Processes())
    again.load_state_dict({**content, "step": 4, "random": [elsewhere]})
    assert not torch.equal(again.random.get_state(), state.random.get_state())


def test_a_slow_average_that_is_new_begins_at_the_other_one(small_config: TrainConfig) -> None:
    state = TrainingState(small_config, Processes())
    with torch.no_grad():
        for parameter in state.generator_ema.parameters():
            parameter.add_(0.25)
    again = TrainingState(replace(small_config, slow_ema_decay=0.999), Processes())
    again.load_state_dict(state.state_dict())
    assert again.generator_slow_ema is not None
    assert torch.equal(weights(again.generator_slow_ema), weights(state.generator_ema))


def test_all_networks_start_from_another_run(small_config: TrainConfig) -> None:
    config = replace(small_config, slow_ema_decay=0.999)
    other, state = TrainingState(replace(config, seed=1), Processes()), TrainingState(config, Processes())
    with torch.no_grad():
        for parameter in other.generator_ema.parameters():
            parameter.add_(0.25)
    rendering = RenderingSettings(config.volume, config.fov_degrees, 8, config.poses)
    configs = (config.generator, config.discriminator, rendering)
    weights_of_other = (other.generator_ema.state_dict(), other.discriminator.state_dict())
    state.start_from(Networks(Path("other.pt"), *configs, 7, *weights_of_other))
    assert state.generator_slow_ema is not None
    for generator in (state.generator, state.generator_ema, state.generator_slow_ema):
        assert torch.equal(weights(generator), weights(other.generator_ema))
    assert torch.equal(weights(state.discriminator), weights(other.discriminator))
    assert state.step == 0

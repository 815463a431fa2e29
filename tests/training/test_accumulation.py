"""Batches in parts, one after the other: they train what the whole batch trains."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training.runs import real_images, run

from cips3d.cameras import Cameras
from cips3d.models.view import View
from cips3d.training import losses
from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.objectives import Objectives, StepReport
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep


def test_parts_of_a_batch_add_up(small_config: TrainConfig) -> None:
    """Gradients of two backward passes without a clip or a scale, of every parameter of the generator."""
    generator = TrainingState(small_config, Processes()).generator.double()
    z = [x.double() for x in generator.sample_z(2, generator=torch.Generator().manual_seed(0))]
    front = torch.full((2,), math.pi / 2, dtype=torch.float64)

    def backward() -> list[Tensor]:
        view = View(8, Cameras.from_angles(front, front), small_config.volume, jitter=False)
        generator.render(generator.mapping(*z), view).image.square().sum().backward()
        return [p.grad.clone() for p in generator.parameters() if p.grad is not None]

    for twice, once in zip(*reversed([backward(), backward()]), strict=True):
        torch.testing.assert_close(twice, 2 * once)


def test_accumulation_gives_the_gradient_of_the_whole_batch(small_config: TrainConfig) -> None:
    """The mean over parts of equal size is the mean over the batch; real images only, so that draws do not matter."""
    gradients = []
    for parts in (1, 2):
        config = replace(small_config, r1_gamma=2.0)
        state = TrainingState(config, Processes())
        step = TrainingStep(state, config)
        now = plan_at(config, 0)
        fake = step.generate_without_gradient(4, now, None)
        for index in torch.arange(4).chunk(parts):
            part = replace(fake, main=fake.main[index], aux=None if fake.aux is None else fake.aux[index])
            loss = step.objectives.discriminator(real_images()[index], part, now, StepReport()) / parts
            loss.backward()
        gradients.append(
            torch.cat([p.grad.reshape(-1) for p in state.discriminator.parameters() if p.grad is not None])
        )
    # float32 sums in another order
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_figures_of_a_batch_in_parts_are_those_of_the_batch(small_config: TrainConfig) -> None:
    config = replace(small_config, r1_gamma=2.0, r2_gamma=1.0)
    figures = []
    for parts in (1, 2):
        step = TrainingStep(TrainingState(config, Processes()), config)
        now = plan_at(replace(config, stages=(replace(config.stages[0], accumulation=parts),)), 0)
        fake = step.generate_without_gradient(4, now, None)
        report = StepReport()
        for index in torch.arange(4).chunk(parts):
            part = replace(fake, main=fake.main[index], aux=None if fake.aux is None else fake.aux[index])
            step.objectives.discriminator(real_images()[index], part, now, report)
            step.objectives.generator(part, real_images()[index], now, report)
        figures.append(report.scalars)
    whole, in_parts = figures
    assert {"d/loss", "d/aux_loss", "d/real", "d/r1", "d/r2", "g/loss", "g/aux_loss"} <= whole.keys()
    assert whole.keys() == in_parts.keys()
    for name, value in whole.items():
        assert in_parts[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name  # float32


@pytest.mark.parametrize("parts", [1, 4])
def test_the_mean_path_length_moves_once_a_batch(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """By 1% of the way to lengths of 1, in however many parts the batch comes."""
    monkeypatch.setattr(losses, "path_lengths", lambda images, *_: images.mean((1, 2, 3)) * 0 + 1)
    state, report = run(replace(small_config, path_length_weight=2.0, path_length_every=1), accumulation=parts)
    assert report.finite
    assert state.path_length.mean.item() == pytest.approx(0.01, rel=5e-3)  # 1 - (1 - 0.01/4)⁴ is 0.4% less


def test_both_networks_see_a_batch_in_parts(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    outputs = Objectives.discriminator_outputs
    monkeypatch.setattr(Objectives, "discriminator_outputs", lambda *of: seen.append(len(of[1])) or outputs(*of))
    _, report = run(replace(small_config, r1_gamma=0.0), accumulation=2)
    assert report.finite
    assert seen == [2] * 6  # twice real, generated, and generated to be learned from


def test_losses_of_a_batch_in_parts_are_its_mean(small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that are the same of every part have the same gradients in however many."""

    def constant(name: str) -> Any:
        original = getattr(Objectives, name)

        def loss(self: Objectives, *of: Any) -> Tensor:
            original(self, *of)  # which notes its figures
            return torch.stack([p.sum() for p in getattr(self.state, name).parameters()]).sum()

        return loss

    for name in ("discriminator", "generator"):
        monkeypatch.setattr(Objectives, name, constant(name))
    monkeypatch.setattr(
        TrainingStep,
        "path_length_loss",
        lambda self, *_: torch.stack([p.sum() for p in self.state.generator.parameters()]).sum(),
    )
    config = replace(small_config, path_length_weight=2.0)
    norms = []
    for parts in (1, 2):
        _, report = run(config, accumulation=parts)
        norms.append([report.scalars[f"{name}/gradient_norm"].item() for name in ("d", "g")])
    assert norms[1] == pytest.approx(norms[0])

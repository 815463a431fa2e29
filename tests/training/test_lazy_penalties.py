"""Regularisers that are due now and then, with steps of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training.runs import run

from cips3d.training import losses, objectives
from cips3d.training.config import TrainConfig
from cips3d.training.state import lazy_betas
from cips3d.training.step import TrainingStep


def steps_taken(optimizer: torch.optim.Optimizer) -> int:
    return int(next(iter(optimizer.state.values()))["step"])


@pytest.mark.parametrize("alone", [True, False])
def test_lazy_penalties_take_steps_of_their_own(small_config: TrainConfig, alone: bool) -> None:
    """Where Adam is corrected for them: in 4 steps, 2 of R1 and 1 of path lengths."""
    lazy = {"r1_every": 2, "path_length_weight": 2.0, "path_length_every": 4}
    state, report = run(replace(small_config, lazy_correction=alone, **lazy), 4)
    assert (steps_taken(state.optimizer_d), steps_taken(state.optimizer_g)) == ((6, 5) if alone else (4, 4))
    state, report = run(replace(small_config, lazy_correction=alone, **lazy), 1)
    assert {"d/r1", "g/path_length", "d/gradient_norm", "g/gradient_norm"} <= report.scalars.keys()
    assert ("d/penalty/gradient_norm" in report.scalars) == alone
    assert ("g/path_length/gradient_norm" in report.scalars) == alone


def test_lazy_penalties_step_along_their_own_gradients(
    small_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Penalties that nothing changes move nothing, whatever the losses of the same step do."""
    monkeypatch.setattr(losses, "path_lengths", lambda images, *_: images.mean((1, 2, 3)) * 0 + 1)
    penalised: list[Tensor] = []
    monkeypatch.setattr(objectives, "r1_penalty", lambda logits, images: penalised.append(images) or logits.mean() * 0)
    gradients: dict[str, float] = {}
    update = TrainingStep.update

    def recorded(self: TrainingStep, network: torch.nn.Module, *of: Any) -> bool:
        gradients[of[2]] = sum(p.grad.abs().sum().item() for p in network.parameters() if p.grad is not None)
        return update(self, network, *of)

    monkeypatch.setattr(TrainingStep, "update", recorded)
    run(replace(small_config, lazy_correction=True, path_length_weight=2.0))
    assert gradients.keys() == {"d", "d/penalty", "g", "g/path_length"}
    assert gradients["d"] > 0 and gradients["g"] > 0
    assert gradients["d/penalty"] == gradients["g/path_length"] == 0
    assert len(penalised) == 2  # of both discriminators, once


def test_lazy_penalties_of_a_batch_in_parts_are_those_of_the_batch(small_config: TrainConfig) -> None:
    config = replace(small_config, lazy_correction=True)
    norms = []
    for parts in (1, 2):
        _, report = run(config, accumulation=parts, lr_discriminator=0.0)
        norms.append(report.scalars["d/penalty/gradient_norm"].item())
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)  # float32 sums in another order


def test_adam_is_corrected_for_lazy_penalties(small_config: TrainConfig) -> None:
    """c = k/(k+1) for R1 every k = 2 steps: rates times 2/3, decays to the power 2/3 (StyleGAN2, appendix B)."""
    config = replace(small_config, lazy_correction=True, adam_betas=(0.0, 0.125), r1_every=2)
    state, _ = run(config)
    group = state.optimizer_d.param_groups[0]
    assert group["lr"] == pytest.approx(config.stages[0].lr_discriminator * 2 / 3)
    assert group["betas"] == (0.0, pytest.approx(0.25))
    assert state.optimizer_g.param_groups[0]["betas"] == (0.0, 0.125)  # no path length penalty: no correction
    assert replace(config, r1_gamma=0.0).discriminator_interval is None
    assert replace(config, r1_gamma=0.0, r2_gamma=1.0).discriminator_interval == 2  # its steps are R1's
    assert lazy_betas((0.5, 0.99), 16) == pytest.approx((0.5 ** (16 / 17), 0.99 ** (16 / 17)))

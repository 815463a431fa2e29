"""Runs, whole or of some steps: what ends them, and whether two came to the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cips3d.training.config import TrainConfig
from cips3d.training.distributed import Processes
from cips3d.training.objectives import StepReport
from cips3d.training.schedule import plan_at
from cips3d.training.state import TrainingState
from cips3d.training.step import TrainingStep


def assert_equal_states(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, through nested dictionaries and lists."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "config":  # names the folder
                assert_equal_states(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_states(x, y, f"{where}[{k}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def after_steps(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something when a number of steps has been made."""
    original = TrainingStep.__call__

    def counted(self: TrainingStep, *arguments: Any) -> StepReport:
        report = original(self, *arguments)
        if self.state.step + 1 == step:
            action()
        return report

    monkeypatch.setattr(TrainingStep, "__call__", counted)


def real_images(batch: int = 4) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


def run(config: TrainConfig, steps: int = 1, **stage: Any) -> tuple[TrainingState, StepReport]:
    if stage:
        config = replace(config, stages=(replace(config.stages[0], **stage),))
    state = TrainingState(config, Processes())
    state.enter_stage(0, config.stages[0])
    step = TrainingStep(state, config)
    for k in range(steps):
        report = step(real_images(), plan_at(config, k))
        assert report.finite
        state.step += 1
    return state, report

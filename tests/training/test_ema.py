"""The generator's moving average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cips3d.training.ema import update_ema


@pytest.mark.parametrize(("step", "expected"), [(4, 0.0), (5, 2 / 11), (13, 10 / 19), (100_000, 0.9)])
@pytest.mark.parametrize("warm_up", [True, False])
def test_decay(step: int, expected: float, warm_up: bool) -> None:
    expected = expected if warm_up or step < 5 else 0.9
    average, module = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.ones_(average.weight)
    nn.init.zeros_(module.weight)
    average.requires_grad_(False)
    update_ema(average, module, step=step, decay=0.9, start=5, warm_up=warm_up)
    assert average.weight.item() == pytest.approx(expected, abs=1e-6)


def test_buffers_are_copied() -> None:
    average, module = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    module.running_mean = torch.tensor([1.0, 2.0])
    update_ema(average.requires_grad_(False), module, step=10, decay=0.9, start=0, warm_up=False)
    assert torch.equal(average.get_buffer("running_mean"), torch.tensor([1.0, 2.0]))

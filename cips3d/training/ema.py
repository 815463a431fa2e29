"""The generator's exponential moving average: the weights that pictures are made with."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, *, step: int, decay: float, start: int, warm_up: bool) -> None:
    """θ_ema ← d θ_ema + (1 - d) θ with d = `decay`; before `start`, a plain copy.

    Args:
        step: steps finished before this one.
        warm_up: d = min(decay, (1 + t)/(10 + t)) in the t-th step from the start on, t = 1, 2, ...: what the network
            was at first is soon forgotten, as in pi-GAN's average.
    """
    t = step - start + 1
    d = 0.0 if t < 1 else min(decay, (1 + t) / (10 + t)) if warm_up else decay
    pairs = zip(average.parameters(), module.parameters(), strict=True)
    averages, values = map(list, zip(*pairs, strict=True))
    torch._foreach_lerp_(averages, values, 1 - d)
    buffers, values = list(average.buffers()), list(module.buffers())
    if buffers:
        torch._foreach_copy_(buffers, values)

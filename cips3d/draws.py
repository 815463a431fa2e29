"""Random numbers that are the same on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def drawn(
    distribution: Callable[..., Tensor],
    *size: Any,
    generator: torch.Generator | None,
    device: torch.device | str,
    dtype: torch.dtype | None = torch.float32,
) -> Tensor:
    """Numbers drawn where the generator is, then moved: one on the CPU gives the same wherever they are needed.

    Args:
        distribution: `torch.rand`, `torch.randn`, `torch.randperm` or what is called like them.
        size: its arguments.
        generator: None: PyTorch's own of the device.
        device, dtype: of the result; None leaves the dtype, as of integers.
    """
    drawn_on = device if generator is None else generator.device
    return distribution(*size, generator=generator, device=drawn_on).to(device, dtype)

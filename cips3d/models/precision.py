"""Mixed precision of single networks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Matrix products in `dtype` (bfloat16 or float16); None leaves things as they are around."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Everything in the dtype of its operands, whatever is set around."""
    return torch.autocast(device.type, enabled=False)

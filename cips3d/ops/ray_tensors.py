"""What the kernels on rays ask of tensors: float32 for everything but features."""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.ops import kernels


def kernels_take_float32(first: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels compute on these depths, directions, densities and draws; else plain PyTorch does."""
    return kernels.take(first) and all(x is None or x.dtype == torch.float32 for x in (first, *others))


def require_float32(**tensors: Tensor | None) -> None:
    """Raise TypeError, naming the argument, unless a kernel may read these as float32.

    The public functions never get here with others; a direct call of a registered op might.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be torch.float32, got {tensor.dtype}")

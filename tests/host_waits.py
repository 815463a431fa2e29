"""How often host and device meet: reads of single numbers, and copies."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CallsOf(TorchDispatchMode):
    """Counts the calls of an operation of PyTorch's."""

    def __init__(self, operation: torch._ops.OpOverload) -> None:
        super().__init__()
        self.operation = operation
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is self.operation
        return func(*args, **(kwargs or {}))


def reads_of_single_values() -> CallsOf:
    """Counts the times that the host asks for one number, for which it would wait on a GPU."""
    return CallsOf(torch.ops.aten._local_scalar_dense.default)


def copies() -> CallsOf:
    """Counts tensors that go to another device or dtype."""
    return CallsOf(torch.ops.aten._to_copy.default)

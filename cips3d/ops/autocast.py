"""Autocast of a tensor's device; tensors of the device "meta", which are shapes without numbers, know none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Inside, products have the dtype of their factors."""
    # Switching off what is off would take 2 µs, some fifty times a picture. What is compiled may meet autocast later.
    if is_autocasting(device) or (torch.compiler.is_compiling() and device.type != "meta"):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def is_autocasting(device: torch.device) -> bool:
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def gradients_without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """`backward(ctx, *grads)` in the dtypes of its tensors, also where `Tensor.backward` is called under autocast.

    Autocast would round what an op has computed in float32.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> Any:
        for grad in grads:
            if grad is not None:
                with without_autocast(grad.device):
                    return backward(ctx, *grads)
        return backward(ctx, *grads)  # without a gradient there is nothing to compute

    return run


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of matrices [..., n, k] and [..., k, m] in their own dtype, whatever autocast is set.

    So are its gradients in compiled code. torch.compile traces a backward under the autocast of the call that it
    compiles, where `without_autocast` around the forward does not reach it.
    """
    if torch.compiler.is_compiling():
        found: Tensor = _Product.apply(a, b)
        return found
    with without_autocast(a.device):
        return a @ b


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with without_autocast(a.device):
            return a @ b

    @staticmethod
    @gradients_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        of_a, of_b = ctx.needs_input_grad
        return (
            (grad @ b.mT).sum_to_size(a.shape) if of_a else None,
            (a.mT @ grad).sum_to_size(b.shape) if of_b else None,
        )

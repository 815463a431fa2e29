"""Products of float32 matrices through three of float16, and their gradients, beside the exact ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ops.backends import Backend
from reference_records import relative_l2
from torch import Tensor

from cips3d.ops import split_matmul

# Three products of 11 bits keep 22: 7e-8 of every product, root mean square. The rest is float32's rounding of sums.
TOLERANCE = 5e-7


def sample(rows: Sequence[int], width_in: int, width_out: int) -> list[Tensor]:
    """x, W and a gradient of x W in float64."""
    random = torch.Generator().manual_seed(0)
    shapes = ((*rows, width_in), (width_in, width_out), (*rows, width_out))
    return [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]


def on(backend: Backend, tensors: list[Tensor]) -> list[Tensor]:
    """In float32, where the test computes, and requiring gradients."""
    return [t.to(backend.device, torch.float32).requires_grad_() for t in tensors]


def products(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """x W, and the gradients of x and of W where grad is that of x W."""
    y = split_matmul(x, weight)
    return y, *torch.autograd.grad(y, [x, weight], grad)


def check(found: tuple[Tensor, ...], x: Tensor, weight: Tensor, grad: Tensor, *, over_rows: float = TOLERANCE) -> None:
    """Compare with float64; the tolerance of sums over rows may be another."""
    x, weight, grad = (t.detach().double().cpu() for t in (x, weight, grad))
    exact = (x @ weight, grad @ weight.mT, x.mT @ grad)
    for product, value, tolerance in zip(found, exact, (TOLERANCE, TOLERANCE, over_rows), strict=True):
        assert product.shape == value.shape
        assert relative_l2(product, value) < tolerance
